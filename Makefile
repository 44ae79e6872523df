# One line each, no logic: what a target does is in the script or module that it calls.
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help up down status test check fmt tools dashboards dashboards-preview load model model-eval bench bench-engines lock

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## install what is missing, start everything, stay in the foreground (DETACH=1: return when ready; PODS=4 PORT=8010 ENGINE=fake …)
	@scripts/setup.sh run && exec .venv/bin/convoy up $(if $(DETACH),--detach)

down: ## stop everything
	@scripts/setup.sh run && exec .venv/bin/convoy down

status: ## what runs, and how often it had to be started again
	@scripts/setup.sh run && exec .venv/bin/convoy status

test: ## everything that CI runs: check, then all tests
	@scripts/setup.sh test && scripts/check.sh && $(PY) -m pytest -n 2 --dist loadfile -m "not stack" && exec $(PY) -m pytest -m stack

check: ## linters, types, Envoy's files, sizes, import rule, locks: seconds, starts nothing
	@scripts/setup.sh dev && exec scripts/check.sh

fmt: ## format the code
	@scripts/setup.sh dev && .venv/bin/ruff format . && .venv/bin/ruff check --fix .

tools: ## build or find what watches the stack: collector, Jaeger, Prometheus, Alertmanager (needs Go; 20 minutes, once per machine)
	@scripts/setup.sh run && exec $(PY) -m services.ops.tools

dashboards: ## write grafana/dashboards/ from the code
	@scripts/setup.sh dev && exec $(PY) -m grafana.build

dashboards-preview: ## draw the dashboards with live data as one page, without Grafana: .convoy/dashboards.html (PROMETHEUS_URL=…)
	@scripts/setup.sh dev && exec $(PY) -m grafana.preview $(if $(PROMETHEUS_URL),--prometheus $(PROMETHEUS_URL))

load: ## put a load on the running stack and write a report (SHAPE=steps, spike or poisson; UI=1: Locust's page at :8089; ARGS="-u 50 …", ARGS=--help)
	@scripts/setup.sh dev && exec $(PY) -m services.ops.load $(if $(UI),--ui) $(if $(SHAPE),--shape $(SHAPE)) $(ARGS)

model: ## train the demo model from nothing (under an hour on 2 cores)
	@scripts/setup.sh dev && exec env OMP_WAIT_POLICY=passive $(PY) -m models.demo.train

model-eval: ## ask the demo model what it was not trained on
	@scripts/setup.sh dev && exec $(PY) -m models.demo.evaluate

bench: ## measure, as ratios in one run; writes docs/benchmarks.md
	@scripts/setup.sh dev && exec $(PY) -m bench

bench-engines: ## a vLLM pod beside vLLM's own server, and the batching strategies; writes docs/benchmarks.md's part and docs/batching.md's figures
	@scripts/setup.sh dev && scripts/setup.sh vllm && exec $(PY) -m bench --update engines batching continuation

lock: ## compile requirements/ from pyproject.toml
	@exec scripts/lock.sh
