# cinderlift. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
BUILD := build
# go-ceph picks its calls by the name of the installed Ceph release (16 pacific, 17 quincy, 18 reef, 19 squid); newer
# ones need no tag. Without librbd-dev there is no release, and packages with cgo are left out.
CEPH_MAJOR := $(shell dpkg-query -W -f '$${Version}' librbd-dev 2>/dev/null | cut -d. -f1)
CEPH_RELEASE := $(patsubst 16,pacific,$(patsubst 17,quincy,$(patsubst 18,reef,$(patsubst 19,squid,$(CEPH_MAJOR)))))
TAGS := $(CEPH_RELEASE),ceph_preview
# Everything that needs no librbd.
PURE := ./worker/... ./strategies/... ./glance/... ./metrics/... ./internal/oslo/... ./internal/keystone/... ./internal/cinder/... ./internal/reap/... ./internal/lab/... ./internal/arrows/... ./internal/imageformat/... ./internal/qcow2/... ./internal/gzipped/... ./deployments/...
# Packages with tests that compare with qemu-img (build tag qemu).
QEMU := ./internal/imageformat ./internal/qcow2
# The race detector needs a C compiler; without one Go turns cgo off by itself.
RACE = $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race)
GENERATIONS ?= bookworm trixie
LAB := deployments/lab/lab

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: tags
tags:
	@echo $(TAGS)

.PHONY: deps
deps: ## install what building and testing need (Debian 12 or 13, root)
	@deployments/deps

.PHONY: build
build: deps ## build build/cinderlift
	@$(MAKE) --no-print-directory binary

.PHONY: binary
binary:
	@mkdir -p $(BUILD)
	$(GO) build -tags $(TAGS) -trimpath -o $(BUILD)/cinderlift ./cmd/cinderlift

.PHONY: unit
unit: ## tests without services and without librbd; under a minute
	$(GO) vet $(PURE)
	$(GO) test -count=1 $(PURE)

.PHONY: unit-race
unit-race: ## the same with the race detector; two minutes
	@[ -n '$(RACE)' ] || echo 'unit-race: without the race detector, which needs a C compiler (make deps installs one)'
	$(GO) test $(RACE) -count=1 $(PURE)

.PHONY: unit-ceph
unit-ceph: ## tests without services of what needs librbd
	$(GO) test -race -count=1 -tags $(TAGS) ./cmd/... ./internal/ceph/...

.PHONY: qemu-packages
qemu-packages:
	@echo $(QEMU)

.PHONY: unit-qemu
unit-qemu: ## tests without services that compare with qemu-img
	$(GO) test -count=1 -tags qemu -run "^TestQemu" $(QEMU)

.PHONY: check
check: deps ## gofmt, vet and the linters
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet -tags $(TAGS) ./...
	$(GO) vet -tags $(TAGS),lab,qemu ./...
	deployments/lint $(TAGS)

.PHONY: test
test: ## all tests, on both labs of real services; installs what it needs
	@deployments/test $(GENERATIONS)

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZ_TIME (default 20s)
	@deployments/fuzz $(or $(FUZZ_TIME),20s)

.PHONY: chaos
chaos: chaos-cloud chaos-matrix ## kill workers and services while images are made, then audit; then every cell of the kill matrices

.PHONY: chaos-cloud
chaos-cloud: build ## only the first part of it: CHAOS_TIME (20m), CHAOS_JOBS, CHAOS_SEED, CHAOS_WORKERS
	@$(MAKE) --no-print-directory chaos-binary
	@CHAOS_TIME=$(or $(CHAOS_TIME),20m) deployments/chaos/run $(or $(GENERATION),bookworm)

# Tests that run a sample, and everything with CINDERLIFT_CHAOS=full.
FULLY := ^(TestKillMatrix|TestTakeover|TestDrain.*|TestDuplicateStorm|TestKillAtEverySend|TestKilledInFlatten|TestSleeperChangesNothing|TestDeleteInEveryInstant)$$

.PHONY: chaos-matrix
chaos-matrix: ## only the second part: each step of each strategy in each way, hours
	@CINDERLIFT_CHAOS=full TEST_TIMEOUT=6h RUN='$(FULLY)' deployments/test $(or $(GENERATION),bookworm)

.PHONY: chaos-binary
chaos-binary:
	$(GO) build -o $(BUILD)/chaos ./deployments/chaos
	$(GO) build -o $(BUILD)/audit ./deployments/audit

.PHONY: vuln
vuln: ## known vulnerabilities in what is linked in (needs the vulnerability database's server)
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.1.4 -tags $(TAGS) ./...

.PHONY: bench
bench: build ## stock Cinder, Ceph's tools and cinderlift side by side; BENCH_SIZES, BENCH_RUNS, … (build/bench -h)
	@$(MAKE) --no-print-directory bench-binary
	@BENCH_PLOTS=$(or $(BENCH_PLOTS),$(BUILD)/plots) deployments/bench/run $(or $(GENERATION),bookworm)

.PHONY: bench-binary
bench-binary:
	$(GO) build -o $(BUILD)/bench ./deployments/bench

.PHONY: demo
demo: ## see it work: stock Cinder and cinderlift on a real OpenStack (GENERATION=bookworm or trixie)
	@deployments/demo/demo $(or $(GENERATION),bookworm)

.PHONY: demo-down
demo-down: ## end the demo and remove everything it made
	@deployments/demo/down

.PHONY: lab-up
lab-up: ## only the lab: make lab-up GENERATION=trixie
	@$(LAB) up $(or $(GENERATION),bookworm)

.PHONY: lab-down
lab-down: ## stop both labs
	@for g in bookworm trixie; do $(LAB) down $$g; done

.PHONY: clean
clean: ## remove build/ (the labs stay; see demo-down)
	rm -rf $(BUILD)
