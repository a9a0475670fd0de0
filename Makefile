# The two commands of a newcomer are `make demo` and `make test`; each installs what it lacks, under
# target/.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

system: ## Install what building needs
	@scripts/system.sh build-essential cmake perl pkg-config
	@command -v $(CARGO) >/dev/null || { echo "Rust is not here: see rustup, or apt-get install cargo" >&2; exit 1; }

tools: ## Get HAProxy 2.6, 3.0, 3.2 and 3.4, Nomad, Prometheus, and a browser for the page, under target/tools
	@scripts/haproxy.sh 3.0 >/dev/null
	@scripts/haproxy.sh 3.2 >/dev/null
	@scripts/haproxy.sh 3.4 >/dev/null || echo "going on without HAProxy 3.4" >&2
	@scripts/haproxy.sh 2.6 >/dev/null || echo "going on without HAProxy 2.6" >&2
	@scripts/nomad.sh >/dev/null
	@scripts/prometheus.sh >/dev/null
	@scripts/page.sh
	@scripts/system.sh mariadb-server-core mariadb-client-core openssl busybox jq curl
	@if [ -n "$${DATAPLANEAPI_BIN:-}" ] || command -v dataplaneapi >/dev/null; then scripts/system.sh socat; fi

demo: system ## Show it: Nomad, HAProxy, a job that scales, rolls and stops (ONCE=1, CATALOG=file)
	@scripts/demo.sh

playground: system tools ## A database connection through HAProxy, and how many workers each change leaves
	$(CARGO) build --quiet --locked --bins --examples
	target/debug/examples/playground

check: ## Formatting, lints, docs, unit tests, licences: before each commit
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked --document-private-items
	$(CARGO) test --lib --bins --locked
	@$$(scripts/cargo-tool.sh cargo-deny 0.20.2) --log-level warn check licenses sources bans

test: system tools check ## Everything: check, contract tests, end to end on real HAProxy and Nomad
	$(CARGO) build --locked --bins --examples
	$(CARGO) test --locked --no-fail-fast --test '*' -- --test-threads=3
	@scripts/which-api.sh

bench: ## Benchmarks of the pure parts, as ratios to their baselines
	$(CARGO) bench --locked

bench-e2e: system tools ## What changes cost on a real HAProxy: reloads, API calls, times as ratios
	$(CARGO) build --quiet --release --locked --bins --examples
	target/release/examples/bench_e2e
	target/release/examples/bench_fleet
	target/release/examples/bench_nomad

soak: system tools ## An hour of churn under requests: failures, reloads, memory (SOAK_MINUTES, SOAK_HAPROXY, SOAK_COMPARE=1)
	$(CARGO) build --quiet --release --locked --bins --examples
	target/release/examples/soak

fuzz: system ## Generated catalogs over generated configurations (FUZZ_CASES, FUZZ_HAPROXY, FUZZ_JOBS)
	FUZZ_CASES=$${FUZZ_CASES:-1000000} $(CARGO) test --profile fuzz --locked --test fuzz -- --nocapture

image: system ## Build the image of deploy/Dockerfile without a container engine, and start it (as root)
	@scripts/image.sh

dist: system ## What a release consists of, under target/dist: archive, bill of materials, checksums
	@scripts/dist.sh

clean: ## Remove what was built; the tools stay
	$(CARGO) clean --release; rm -rf target/debug

.PHONY: help system tools demo playground check test bench bench-e2e soak fuzz image dist clean
