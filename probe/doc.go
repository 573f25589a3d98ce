// Package probe asks a service whether it does its job: one URL, one answer,
// one reason.
//
// A port that is open, or a banner, is not health: a mail server that greets
// may be unable to deliver. So a probe carries a real transaction out.
//
//	http://HOST[:PORT]/PATH[?QUERY]     GET; any status below 400
//	https://HOST[:PORT]/PATH[?QUERY]    the same; certificates are not checked
//	dns://SERVER[:PORT]/NAME[?type=A]   NOERROR and an answer of that type
//	smtp://HOST[:PORT]/?to=ADDRESS      a short message is accepted for delivery
//	imap://[USER:PASS@]HOST[:PORT]/     greeting, CAPABILITY, LOGIN if there is a user, LOGOUT
//	imaps://...                         the same over TLS
//	tcp://HOST:PORT                     a connection is accepted
//	exec:COMMAND                        exit status 0
//
// # Options
//
// What the server shall be asked stands in the URL as usual. What the probe
// itself shall do stands in the fragment, which is never sent:
//
//	#timeout=2s      all schemes: how long an answer may take; 5s if not given
//	#match=TEXT      http, https, dns: the answer holds TEXT
//	#status=404      http, https: this very status
//	#verify=1        https, imaps: the certificate must be valid
//
// Several are joined by "&", and written as in a query: "%26" is an ampersand.
// For dns, smtp, imap and tcp, whose servers see no query, options may stand in
// the query too: dns://127.0.0.1/example.org?type=MX&match=mail. The query of dns
// is type=TYPE and tcp=1, that of smtp is to=ADDRESS and from=ADDRESS, which
// is ADDRESS of "to" if not given. Unknown options are errors.
//
// # Commands
//
// Everything behind "exec:" is the command, so it has no options. It is split
// into words as a shell does: by spaces, except within 'single' and "double"
// quotes or behind a backslash, which stands for itself within single quotes
// and within double quotes unless a quote or backslash follows. No shell
// runs: characters by which a shell would do more than split (such as | ; & < >
// $ and `) are refused unless they are quoted; * and ~ stand for themselves.
// For more, write exec:sh -c '...'.
package probe
