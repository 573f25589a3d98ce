// Package fstest makes views to test against: it reads a folder of the disk into
// the manifest's form ([Scan]) and serves its content ([Source]), with a hook
// through which a test delays, fails and observes.
//
// It is for tests only. What captures a service in earnest has exclusions, rules
// and proofs; this has the one property that a test needs, that nothing stands
// between a folder and its snapshot in which a defect of both could hide.
package fstest
