CARGO ?= cargo

help:
	@echo 'make setup   install what the tests and the demo need (Debian 12, as root or with sudo)'
	@echo 'make build   build the programs'
	@echo 'make demo    upgrade a small fleet under load on this machine, move its traffic, and show what happens'
	@echo 'make test    formatting, lints, and every test, those with real PostgreSQL included'
	@echo 'make switchover-faults   kill everything at every step of a switchover (long)'
	@echo 'make partitions   cut the network between hosts at every step of a switchover (long; as root)'
	@echo 'make bench   measure a conversion and the stall of a switchover'
	@echo 'make bench-group   measure three coordinators before 10, 100 and 1,000 simulated agents, the leader killed again and again (long)'
	@echo 'make clean   remove what was built'

setup:
	tests/setup/all.sh

build:
	$(CARGO) build --workspace --bins

demo: setup
	$(CARGO) build --workspace --bins
	$(CARGO) run -p pgleap-tests --bin demo

test: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace

switchover-faults: setup
	$(CARGO) build --workspace --bins
	PGLEAP_FAULTS=all $(CARGO) test -p pgleap-tests --test switchover_faults -- --nocapture

partitions: setup
	$(CARGO) build --workspace --bins
	PGLEAP_PARTITIONS=all $(CARGO) test -p pgleap-tests --test partitions -- --nocapture

bench: setup
	$(CARGO) build --release --workspace --bins
	$(CARGO) run --release -p pgleap-tests --bin bench

bench-group: setup
	$(CARGO) build --release -p pgleap-coordinator -p pgleap-tests --bins
	$(CARGO) run --release -p pgleap-tests --bin bench_group

clean:
	$(CARGO) clean

.PHONY: help setup build demo test switchover-faults partitions bench bench-group clean
