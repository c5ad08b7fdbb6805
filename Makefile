CARGO ?= cargo

help:
	@echo 'make setup   install what the tests and the demo need (Debian 12, as root or with sudo)'
	@echo 'make build   build the programs'
	@echo 'make demo    upgrade a small fleet under load on this machine, move its traffic, and show what happens'
	@echo 'make test    formatting, lints, and every test, those with real PostgreSQL included'
	@echo 'make simulate SEEDS=n FIRST=k   coordinators, agents, networks, disks and clocks from a seed, under every kind of fault'
	@echo 'make switchover-faults   kill everything at every step of a switchover (long)'
	@echo 'make crash-matrix   kill everything at every step of an upgrade (long)'
	@echo 'make partitions   cut the network between hosts at every step of a switchover (long; as root)'
	@echo 'make patroni   old and new clusters that are run by real Patroni, with all their cases (long)'
	@echo 'make matrix   other majors the whole way: 13, 15 and 16 to 17 and 18, and 18 to 18 (long)'
	@echo 'make bench   measure a conversion and the stall of a switchover'
	@echo 'make bench-group   measure three coordinators before 10, 100 and 1,000 simulated agents, the leader killed again and again (long)'
	@echo 'make deb      Debian packages of agent and coordinator in target/packages'
	@echo 'make rpm      the same for the RHEL family'
	@echo 'make lint-ansible   ansible-lint, at its profile production'
	@echo 'make hosts   Debian systemd containers, with and without Patroni, installed by Ansible over ssh, upgraded, one powered off on the way (as root)'
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
	PGLEAP_HOST_ROOT="$$(tests/setup/hosts_ready.sh)" CARGO="$(CARGO)" tests/run.sh

simulate: export SEEDS ?= 500
simulate: export FIRST ?= 1
simulate: export TRACE ?=
simulate:
	$(CARGO) test --profile simulation -p pgleap-coordinator --lib -- simulation::seeds --exact --nocapture

switchover-faults: setup
	$(CARGO) build --workspace --bins
	PGLEAP_FAULTS=all $(CARGO) test -p pgleap-tests --test switchover_faults -- --nocapture

crash-matrix: setup
	$(CARGO) build --workspace --bins
	PGLEAP_CRASHES=all $(CARGO) test -p pgleap-tests --test crash_matrix --test stopped_leader -- --nocapture

partitions: setup
	$(CARGO) build --workspace --bins
	PGLEAP_PARTITIONS=all $(CARGO) test -p pgleap-tests --test partitions -- --nocapture

patroni: export PGLEAP_FAILOVERS = all
patroni: export PGLEAP_PACKAGES = barman pgbackrest
patroni: setup
	$(CARGO) build --workspace --bins
	$(CARGO) test -p pgleap-tests --test patroni --test patroni_new --test patroni_seed --test patroni_backup --test patroni_failover --test failover_slots --test patroni_harness -- --include-ignored --nocapture
	$(CARGO) test -p pgleap-tests --test run_twice -- --ignored --nocapture

matrix: export PGLEAP_MAJORS = 13
matrix: setup
	$(CARGO) build --workspace --bins
	PGLEAP_MATRIX=all $(CARGO) test -p pgleap-tests --test matrix -- --nocapture

bench: setup
	$(CARGO) build --release --workspace --bins
	$(CARGO) run --release -p pgleap-tests --bin bench

bench-group: setup
	$(CARGO) build --release -p pgleap-coordinator -p pgleap-tests --bins
	$(CARGO) run --release -p pgleap-tests --bin bench_group

# PROFILE=dev is quicker, for tests.
deb rpm: export PROFILE ?= release
deb rpm:
	$(CARGO) build --profile $(PROFILE) -p pgleap-agent -p pgleap-coordinator --bins
	packaging/build.sh $@

lint-ansible:
	PATH="$$(tests/setup/ansible.sh):$$PATH" sh -c 'cd ansible && ansible-lint'

hosts: setup
	$(CARGO) build --workspace --bins
	PGLEAP_HOST_ROOT="$$(tests/setup/hosts_ready.sh)" $(CARGO) test -p pgleap-tests --test hosts --test hosts_patroni -- --include-ignored --nocapture

clean:
	$(CARGO) clean

.PHONY: help setup build demo test simulate switchover-faults crash-matrix partitions patroni matrix bench bench-group deb rpm lint-ansible hosts clean
