# make demo   two hosts as network namespaces, the whole story on a real nginx
# make test   every test, with the race detector and once on one processor
# make help   the rest

GO        ?= go
PREFIX    ?= /usr/local
BIN       := bin
TOOLS     := $(CURDIR)/$(BIN)/tools
GOLANGCI  := v2.9.0
STATIC    := honnef.co/go/tools/cmd/staticcheck@v0.7.0
# Programs enter empty roots through a helper that is the program itself, so
# even the race-detecting ones are linked without shared libraries.
# grpc's tracing pages bring html/template in, and with it a fifth of what each
# start of a program costs.
TAGS      := grpcnotrace
RACE      := -race -ldflags '-linkmode=external -extldflags=-static' -tags netgo,osusergo

.PHONY: all build demo bench bench-short bench-paper profile test test-race test-one test-services lint tools deps roots generate fuzz install uninstall clean help

all: build

build: ## build bin/srvd and bin/srvfs
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -o $(BIN)/ ./cmd/srvd ./cmd/srvfs

deps: ## install the Debian packages that tests and demo need
	@test/deps

roots: deps ## make the root folders of the test hosts (once, in /var/cache/srvfs-test)
	@$(GO) run ./test/roots

demo: roots build ## the main job, end to end, each step with its time and bytes
	@$(GO) run ./test/demo

bench: deps build ## measure everything beside its peers, and write docs/benchmarks.md
	@$(GO) run ./test/bench -o docs/benchmarks.md

bench-short: deps build ## a small version of every row of the bench
	@$(GO) run ./test/bench -short

bench-paper: roots build ## a table like the paper's, and write docs/paper.md
	@$(GO) run ./test/paper -o docs/paper.md

profile: deps build ## CPU and heap profiles of srvd and srvfs in the runs of the bench, in bin/profiles
	@$(GO) run ./test/bench -rounds 1 -profile bin/profiles $(if $(ROWS),-rows '$(ROWS)')

# Real services take minutes, and their subject is what Debian's packages need: once.
SERVICES := ^(TestServices|TestThreeServices|TestCaptureFromPackages)

# End to end the programs run as processes of their own. At one processor the few that
# lead through all of them do.
ROOMS = $$($(GO) list ./... | grep -v '/test$$')
ONE  := ^(TestMainJob|TestFollow|TestStandbyFollows)$$

test: roots test-race test-one test-services ## every test

test-race:
	$(GO) test $(RACE) -timeout 60m $(ROOMS)
	test/halves '$(SERVICES)' $(GO) test $(RACE) -timeout 60m

test-one:
	GOMAXPROCS=1 $(GO) test -count=1 -timeout 60m $(ROOMS)
	GOMAXPROCS=1 $(GO) test -count=1 -timeout 60m -run '$(ONE)' ./test
	TRACE_BY=ptrace $(GO) test -count=1 ./capture/trace # as on kernels before 6.6

test-services:
	$(GO) test -count=1 -timeout 60m -run '$(SERVICES)' ./test

fuzz: ## fuzz every decoder for FUZZTIME each (default 30s)
	@test/fuzz $(or $(FUZZTIME),30s)

lint: tools ## gofmt, vet, staticcheck, golangci-lint
	@bad=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$bad" || { echo "not gofmt-ed: $$bad"; exit 1; }
	$(GO) vet ./...
	$(TOOLS)/staticcheck ./...
	$(TOOLS)/golangci-lint run

tools: $(TOOLS)/golangci-lint-$(GOLANGCI) $(TOOLS)/staticcheck

$(TOOLS)/golangci-lint-$(GOLANGCI):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	touch $@

$(TOOLS)/staticcheck:
	GOBIN=$(TOOLS) $(GO) install $(STATIC)

generate: ## make the protobuf code anew (needs protoc)
	$(GO) generate ./...

install: build ## install both programs, the mount helper and the systemd units
	install -D -m 755 $(BIN)/srvd $(DESTDIR)$(PREFIX)/sbin/srvd
	install -D -m 755 $(BIN)/srvfs $(DESTDIR)$(PREFIX)/sbin/srvfs
	install -d $(DESTDIR)/sbin
	ln -sf $(PREFIX)/sbin/srvfs $(DESTDIR)/sbin/mount.fuse.srvfs
	sed 's,/usr/local/sbin,$(PREFIX)/sbin,' docs/systemd/srvd.service | install -D -m 644 /dev/stdin $(DESTDIR)/etc/systemd/system/srvd.service
	sed 's,/usr/local/sbin,$(PREFIX)/sbin,' docs/systemd/srvfs.service | install -D -m 644 /dev/stdin $(DESTDIR)/etc/systemd/system/srvfs.service

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/sbin/srvd $(DESTDIR)$(PREFIX)/sbin/srvfs $(DESTDIR)/sbin/mount.fuse.srvfs
	rm -f $(DESTDIR)/etc/systemd/system/srvd.service $(DESTDIR)/etc/systemd/system/srvfs.service

clean:
	rm -rf $(BIN)

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
