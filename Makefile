# What a person or CI does here. Every target starts from whatever is there: a clean clone or a finished build.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PATH := $(CURDIR)/.wrenn/tools/bin:$(PATH)
# Images, guest kernel and snapshots.
export WRENN_DATA ?= $(CURDIR)/.wrenn/data
# nextest's profile: default or ci.
PROFILE ?= default

BUILT := $(abspath $(or $(CARGO_TARGET_DIR),target))
TARGET := x86_64-unknown-linux-gnu
# Static and not position independent: the agent runs in an empty initramfs, the monitor's start is what resume waits
# for. Given by environment to one command, so that plain builds keep their own flags and artifacts.
STATIC := CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static"

# The static one, unless another is chosen (for example Firecracker).
export WRENN_MONITOR ?= $(BUILT)/$(TARGET)/debug/wrenn-monitor

# Where tests reach the server, which may be in the lab.
SERVED_PORT := 18461

.PHONY: help setup build image quickstart serve bench test test-programs lab fmt check clean-lab

help:
	@echo "make setup       install what is missing (Debian packages, Cargo tools, the lab's kernel)"
	@echo "make build       build the workspace, and the agent and the monitor as static programs"
	@echo "make image       build the guest kernel and the debian image, unless they are there"
	@echo "make quickstart  see a sandbox boot, pause and resume"
	@echo "make serve       serve the HTTP API with a database and a host of its own (WRENN_PORT, DATABASE_URL)"
	@echo "make bench       measure how long resuming takes here (ARGS='--rounds 20 --html report.html')"
	@echo "make test        run all tests"
	@echo "make check       formatting, lints, documentation, licences"
	@echo "make fmt         format the sources"
	@echo "make lab CMD=…   run a command in a Linux that has KVM and device-mapper"
	@echo "make clean-lab   end the lab and remove its kernel"

setup:
	@echo "==> Setup: looking for what is missing"
	@scripts/setup --test --check

# With the examples, so that features are resolved as they are for the tests: nothing is compiled twice.
build:
	@echo "==> Setup: looking for what is missing"
	@scripts/setup
	@echo "==> Build: workspace"
	@cargo build --workspace --bins --examples
	@echo "==> Build: static agent and monitor"
	@$(STATIC) cargo build --target $(TARGET) -p wrenn-agent -p wrenn-monitor

image: build
	@echo "==> Image: guest kernel, initramfs with the agent, debian root; whatever is missing or older than the agent"
	@$(BUILT)/debug/wrenn image build debian

quickstart: image
	@echo "==> Quickstart"
	@lab/lab with -- env WRENN_LAB=$$(lab/own-kvm && echo never || echo always) \
		lab/runner $(BUILT)/debug/examples/quickstart

serve: image
	@echo "==> Serve"
	@scripts/serve $(BUILT)/debug/wrenn

# Optimised, as a user's program would be. A page goes to the lab's share, where both sides can write.
bench: image
	@echo "==> Bench: optimised build"
	@cargo build --release -p wrenn-cli -p wrenn-pager
	@$(STATIC) cargo build --release --target $(TARGET) -p wrenn-monitor
	@echo "==> Bench"
	@lab/lab with -- env WRENN_LAB=$$(lab/own-kvm && echo never || echo always) WRENN_LAB_LIMIT=7200 \
		WRENN_MONITOR=$(BUILT)/$(TARGET)/release/wrenn-monitor \
		lab/runner $(BUILT)/release/wrenn bench restore $(ARGS)

test: image
	@scripts/setup --test
	@echo "==> Test: building"
	@cargo nextest run --workspace --no-run
	@WRENN_LAB_FORWARD=$(SERVED_PORT) lab/lab with -- $(MAKE) test-programs
	@echo "==> Test: examples in the documentation"
	@cargo test --quiet --workspace --doc

# Part of `test`: what runs while the lab is up.
test-programs:
	@echo "==> Test: the lab itself"
	@lab/tests.py
	@echo "==> Test: everything ($(PROFILE) profile)"
	@cargo nextest run --workspace --profile $(PROFILE)
	@echo "==> Test: the server, served"
	@WRENN_LAB_FORWARD=$(SERVED_PORT) tests/served.sh $(BUILT)/debug/wrenn
	@echo "==> Test: nothing was left behind"
	@if lab/own-kvm; then lab/left-behind; else lab/lab exec -- lab/left-behind; fi

lab:
	@$(if $(value CMD),,echo "usage: make lab CMD='command'" >&2; exit 2)
	@lab/lab run -- sh -c $(call quote,$(value CMD))

# `value`: the command's own dollar signs are the shell's, in the lab.
quote = '$(subst ','\'',$(1))'

fmt:
	@echo "==> Format"
	@cargo fmt --all

check:
	@scripts/setup --check
	@echo "==> Check: formatting"
	@cargo fmt --all --check
	@echo "==> Check: lints"
	@cargo clippy --workspace --all-targets -- -D warnings
	@echo "==> Check: documentation"
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
	@echo "==> Check: licences, banned and duplicate crates, sources"
	@cargo deny --log-level error check licenses bans sources

clean-lab:
	@echo "==> Ending the lab and removing its parts"
	@lab/lab down
	@rm -rf .wrenn/lab
