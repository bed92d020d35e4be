# heddle: `make help` lists what there is. Root is needed for test, e2e, demo and bench.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go
RUN     ?= .
ROUNDS  ?= 20

# For raft-boltdb's metrics; see the note in go.mod.
TAGS    := hashicorpmetrics
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)'
TOOL    := $(GO) tool -modfile=tools/go.mod

# What `make check` tests: packages without I/O, and the import rules.
PURE := ./cmd ./overlay ./overlay/health ./overlay/ipam ./overlay/names ./overlay/plan ./overlay/services ./overlay/tunnel ./overlay/wire ./cluster/state ./gossip/table ./datapath ./cmd/heddle/daemon/doctor

.PHONY: help build test check e2e vm soak sim demo demo-shell bench figures install uninstall clean fmt setup reporter need-go need-root

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r t d; do printf '%-11s %s\n' "$$t" "$$d"; done

build: need-go ## build bin/heddle (static) and bin/heddle-demo
	$(BUILD) -o bin/heddle ./cmd/heddle
	$(BUILD) -o bin/heddle-demo ./e2e/demo

check: reporter ## format, vet, staticcheck, import rules, pure tests, CLI for darwin and windows
	@bad=$$($(TOOL) gofumpt -l $$(git ls-files '*.go')); test -z "$$bad" || { echo "make fmt would change: $$bad"; exit 1; }
	$(GO) vet -tags $(TAGS) ./...
	$(GO) vet -C tools ./...
	$(TOOL) staticcheck -tags $(TAGS) ./...
	GOOS=darwin $(GO) build -tags $(TAGS) -o /dev/null ./cmd/heddle
	GOOS=windows $(GO) build -tags $(TAGS) -o /dev/null ./cmd/heddle
	bin/testreport -short -tags $(TAGS) $(PURE)

test: build setup reporter ## all tests: unit, kernel, e2e (root)
	bin/testreport -count=1 -tags $(TAGS) -timeout 10m $$($(GO) list -tags $(TAGS) ./... | grep -v -e '/e2e$$' -e '/e2e/vm$$')
	bin/testreport -count=1 -tags $(TAGS) -timeout 15m -parallel 4 ./e2e
	CGO_ENABLED=0 bin/testreport -short -count=1 -tags $(TAGS) -timeout 10m ./e2e/vm

e2e: build setup reporter ## the scenarios alone (root); RUN=REGEXP picks some
	bin/testreport -count=1 -tags $(TAGS) -timeout 15m -parallel 4 -run '$(RUN)' ./e2e

vm: build setup reporter ## the scenarios on Debian's kernel and systemd in qemu (root); RUN=REGEXP; image in HEDDLE_VM_CACHE, else $XDG_CACHE_HOME or /var/cache
	CGO_ENABLED=0 bin/testreport -count=1 -tags $(TAGS) -timeout 20m -run '$(RUN)' ./e2e/vm

soak: build setup reporter ## the scenarios of faults, each repeated ROUNDS times (root)
	bin/testreport -count=1 -v -tags $(TAGS) -timeout 80m -run 'TestTheLeaderIsKilledAmidWrites|TestRestartsAreNotNoticed|TestTheMTUFollowsTheUnderlay' ./e2e -rounds $(ROUNDS)

sim: need-go ## print the figures of gossip with 1,000 nodes, simulated
	$(GO) test -count=1 -v -tags $(TAGS) -timeout 10m -run TestFigures ./gossip -participants 1000 -endpoints 1000

demo: need-root build ## five hosts in namespaces show what heddle does (root)
	bin/heddle-demo

demo-shell: need-root build ## the demo's hosts left running, with a shell on one (root)
	bin/heddle-demo -shell

bench: need-root build ## measure the figures of the design's section 10, also into bin/bench.json (root); RUN=REGEXP picks steps
	$(BUILD) -o bin/heddle-bench ./e2e/bench
	$(BUILD) -o bin/wireguard-go golang.zx2c4.com/wireguard
	$(BUILD) -o bin/heddle-crowd ./cmd/heddle-crowd
	bin/heddle-bench -run '$(RUN)' -json bin/bench.json

figures: bench ## the same, and write them into docs/figures.md
	bin/heddle-bench -run '^$$' -json bin/bench.json -write docs/figures.md

install: build ## install program, unit, example configuration, and files that keep network managers off (PREFIX, DESTDIR)
	install -D -m 755 bin/heddle $(DESTDIR)$(PREFIX)/bin/heddle
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,/usr/local/bin,$(PREFIX)/bin,' deploy/systemd/heddle.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/heddle.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/network deploy/systemd/00-heddle.network deploy/systemd/00-heddle.link
	install -D -m 644 -t $(DESTDIR)/usr/lib/NetworkManager/conf.d deploy/NetworkManager/heddle.conf
	install -d -m 755 $(DESTDIR)/etc/heddle
	test -e $(DESTDIR)/etc/heddle/heddle.toml || install -m 644 deploy/heddle.toml $(DESTDIR)/etc/heddle/heddle.toml
	@echo 'Installed. Type: systemctl daemon-reload && systemctl enable --now heddle'

uninstall: ## remove what install has put there, but not configuration and state
	rm -f $(DESTDIR)$(PREFIX)/bin/heddle $(DESTDIR)$(PREFIX)/lib/systemd/system/heddle.service
	rm -f $(DESTDIR)$(PREFIX)/lib/systemd/network/00-heddle.network $(DESTDIR)$(PREFIX)/lib/systemd/network/00-heddle.link
	rm -f $(DESTDIR)/usr/lib/NetworkManager/conf.d/heddle.conf
	@echo 'Left in place: $(DESTDIR)/etc/heddle and $(DESTDIR)/var/lib/heddle'

clean: ## remove what build has made
	rm -rf bin

fmt: ## format the Go files
	$(TOOL) gofumpt -w $$(git ls-files '*.go')

reporter:
	@$(GO) build -C tools -o ../bin/testreport ./testreport

setup:
	@tools/setup.sh

need-go:
	@command -v $(GO) >/dev/null || { echo "Go is missing; install the version that go.mod names, or later" >&2; exit 1; }

need-root:
	@test "$$(id -u)" = 0 || { echo "This makes namespaces and links, so it needs root; type it again as root" >&2; exit 1; }
