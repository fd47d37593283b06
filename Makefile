# Two commands do everything on a fresh machine with python3 (3.10 or newer), venv and make:
#   make demo    adapt CLIP to real handwriting, print the table, write runs/demo/report.html
#   make test    check everything: modules in sync, README in sync, every notebook, every test
PYTHON ?= python3
BIN    := .venv/bin
WORKERS ?= 2
INPUTS ?= 20000
KILLS ?= 90
SEED ?= 0
INTEGRATIONS ?= tools,fiftyone,watch
LIMIT ?= 120
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
LEGS ?= lowest newest
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests run beside each other, a thread for each; `make threads` is without it, as users are.
alone := OMP_NUM_THREADS=1
# What passing tests wrote is removed at once: gigabytes otherwise.
temporary := -o tmp_path_retention_policy=failed

checksums = find clipadapt nbs solutions -name .ipynb_checkpoints -prune -o \( -name '*.py' -o -name '*.ipynb' \) -print | sort | xargs cksum

.NOTPARALLEL:
.PHONY: demo test lint test-browser test-versions sync notebooks solutions unit large threads coverage fuzz soak cluster devices slow pretraining stale outputs bench kinds bench-scale export readme lab docs docs-width clean help integrations

help:           ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: .venv/ready-run   ## every method on real handwriting, and a report
	@$(alone) $(BIN)/python -c "from clipadapt.app.demo import demo; demo()"

test: lint sync notebooks unit threads   ## the whole check (this is what CI runs)

lint: .venv/ready-dev   ## layout, likely bugs, who imports whom, types: seconds, and nothing runs
	$(BIN)/ruff format --check --quiet && $(BIN)/ruff check --quiet
	$(BIN)/lint-imports --no-logo
	$(BIN)/ty check --quiet --error-on-warning

sync: .venv/ready-dev   ## modules and notebooks are what export and clean make of them, outputs are those of this code
	@$(checksums) > .venv/before.sums
	@$(BIN)/nbdev_export && $(BIN)/python tools/clean.py && $(BIN)/nbdev_clean && $(BIN)/nbdev_clean --fname solutions
	@$(checksums) | cmp -s - .venv/before.sums || { \
	  echo "clipadapt/ or nbs/ was not what nbdev_export and nbdev_clean make of it; it is now: look at 'git status' and 'git diff', and commit."; exit 1; }
	@$(BIN)/python tools/fresh.py --ordinary || { echo "'make outputs' runs these notebooks and keeps what comes out."; exit 1; }

stale: .venv/ready-dev   ## name the outputs that are older than the code, with what they cost
	@$(BIN)/python tools/fresh.py

# threads.ipynb shows what several threads do.
outputs: .venv/ready-dev   ## run the notebooks whose outputs are older than the code, and keep what comes out (NOTEBOOKS=)
	$(if $(or $(if $(NOTEBOOKS),,all),$(filter %/threads.ipynb,$(NOTEBOOKS))),env -u OMP_NUM_THREADS $(BIN)/python tools/fresh.py --run ordinary nbs/engine/threads.ipynb)
	$(alone) $(BIN)/python tools/fresh.py --run ordinary $(NOTEBOOKS)
	@$(MAKE) export

# Solution 4 takes longer than these five together; `make solutions` runs it.
notebooks: .venv/ready-dev   ## run every notebook (but threads, see below) and the solutions of the first chapters, all but their slow and cuda cells
	$(alone) $(BIN)/nbdev_test --skip_file_re '^([_.]|threads)' --n_workers $(WORKERS) --do_print
	$(alone) $(BIN)/nbdev_test --path solutions --file_re '^0[12356]' --n_workers $(WORKERS) --do_print

solutions: .venv/ready-dev   ## run the solutions of every chapter and of the engine room
	$(alone) $(BIN)/nbdev_test --path solutions --n_workers $(WORKERS) --do_print

unit: .venv/ready-dev   ## the tests that a notebook cannot hold, all but those of threads
	$(alone) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not large' $(temporary) --ignore tests/cluster --ignore tests/integrations --ignore tests/devices $(if $(COVER),--cov,--ignore tests/test_thread_numbers.py) tests

large: .venv/ready-dev   ## the tests that `make unit` leaves out: a whole ViT-B/32, a ConvNeXt, forged files of LatteCLIP; a minute
	$(alone) $(BIN)/python -m pytest -q -m large $(temporary) --ignore tests/cluster --ignore tests/integrations --ignore tests/devices tests

threads: .venv/ready-dev   ## some fits and a notebook as `pip install` leaves them, with all threads there are
	env -u OMP_NUM_THREADS $(BIN)/python -m pytest -q $(temporary) tests/test_thread_numbers.py
	env -u OMP_NUM_THREADS $(BIN)/nbdev_test --path nbs/engine --file_re '^threads' --n_workers 1 --do_print

coverage:       ## the unit tests once more, a quarter slower: they must run 96 % of the package (.coveragerc)
	@$(MAKE) unit COVER=1

fuzz: .venv/ready-dev   ## 20,000 odd inputs for everything that comes from outside (INPUTS=, SEED=); about twenty minutes
	$(alone) $(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED) --workers $(WORKERS)

soak: .venv/ready-dev   ## kill processes at random moments and see whether they go on bit for bit (KILLS=, SEED=); about five minutes
	$(alone) $(BIN)/python -m tests.soak --kills $(KILLS) --seed $(SEED)

cluster: .venv/ready-dev   ## Ray on two nodes and training on two processes: nodes, workers and drivers are killed
	@$(BIN)/python -m pip install --quiet --editable '.[ray]' 'transformers[serving]' 'moto[server]'
	$(alone) $(BIN)/python -m pytest -q $(temporary) tests/cluster

devices: .venv/ready-dev   ## every method on a GPU, or on a pretended one that computes on the CPU
	$(alone) $(BIN)/python -m pytest -q -n $(WORKERS) $(temporary) tests/devices

integrations: .venv/ready-dev   ## packages that we hand things to; INTEGRATIONS= says which extras to install
	@$(BIN)/python -m pip install --quiet --editable '.[$(INTEGRATIONS)]' mongomock
	$(alone) $(BIN)/python -m pytest -q -rs $(temporary) tests/integrations

test-versions: .venv/ready-dev   ## the suite with the lowest versions that settings.ini allows, and the newest (PYTHONS=, LEGS=); half an hour a leg
	@$(BIN)/python -m pip install --quiet 'uv>=0.8' 'packaging>=24'
	$(BIN)/python tools/versions.py --pythons $(PYTHONS) --legs $(LEGS) --workers $(WORKERS)

test-browser: .venv/ready-dev   ## drive the widgets in JupyterLab, and look at a report from 360 pixels to paper, with a Chromium (CHROMIUM=/path/to/it)
	@$(BIN)/python -m pip install --quiet --editable '.[browser]'
	$(alone) $(BIN)/python -m pytest -q tests/browser/jupyterlab.py tests/browser/report.py

# tiny_clip.ipynb would replace the built-in CLIP: `make pretraining` alone does so.
slow = $(filter-out %/tiny_clip.ipynb,$(or $(NOTEBOOKS),$(wildcard nbs/*.ipynb nbs/engine/*.ipynb)))
# Chapter 15 keeps its runs; those of older code would answer for today's.
slow: .venv/ready-dev   ## `make outputs`, and the slow cells that are older than the code (NOTEBOOKS=): hours; it goes on with the notebook in which it was stopped
	@$(MAKE) outputs
	$(if $(filter %/15_compare.ipynb,$(slow)),rm -rf runs/compare)
	$(if $(slow),$(alone) $(BIN)/python tools/fresh.py --run slow $(slow),@echo "There is nothing to run: tiny_clip.ipynb is for make pretraining alone.")
	@$(MAKE) export

pretraining: .venv/ready-dev   ## train the built-in CLIP anew, most of an hour: its weights change, and with them all figures
	$(alone) IN_TEST=1 $(BIN)/python tools/fresh.py --run slow --again nbs/engine/tiny_clip.ipynb

bench: .venv/ready-dev   ## our code beside other code, in one run, and the page of it: half an hour of a quiet machine
	$(BIN)/python benchmarks/performance.py

kinds: .venv/ready-dev   ## every method on other kinds of CLIP, whole and exported: time, memory, the same answers; hours
	$(BIN)/python benchmarks/conformance.py
	$(BIN)/python benchmarks/export.py

bench-scale: .venv/ready-dev   ## time and memory of methods up to a million features and 1,000 classes: hours, in parts (LIMIT= seconds a run)
	cd benchmarks && $(abspath $(BIN))/python scale.py --methods all --sizes 1000 10000 100000 1000000 --classes 10 100 1000 --dims 64 512 --limit $(LIMIT) --out ../nbs/engine/growth.jsonl

export: .venv/ready-dev   ## notebooks to modules, metadata cleaned, README made anew
	$(BIN)/nbdev_export && $(BIN)/python tools/clean.py && $(BIN)/nbdev_clean && $(BIN)/nbdev_clean --fname solutions && $(BIN)/python tools/readme.py

readme: .venv/ready-dev   ## README.md from nbs/index.ipynb, without quarto
	$(BIN)/python tools/readme.py

docs: .venv/ready-dev   ## the site into _docs/, every link checked; with quarto where it is installed, else without
	$(BIN)/python tools/docs.py

docs-width: docs   ## in a browser: no code of the site is cut, no page scrolls sideways (CHROMIUM=)
	@$(BIN)/python -m pip install --quiet --editable '.[browser]'
	$(BIN)/python tools/check_width.py

lab: .venv/ready-dev   ## open the course in JupyterLab, solutions beside it
	$(BIN)/jupyter lab --ServerApp.root_dir=. nbs/index.ipynb

clean:          ## remove what the targets made (the environment too)
	rm -rf .venv runs _docs _proc build dist *.egg-info

# The environment. A stamp says which extra is complete; an environment without any stamp was cut off
# half way and is made anew. `ready-dev` includes what `ready-run` has. Without compiling: most of a
# minute for thousands of modules that nobody imports; Python compiles those that are.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "clipadapt needs Python 3.10 or newer; choose one with: make PYTHON=python3.12"; exit 1; }
	@if ! ls .venv/ready-* >/dev/null 2>&1; then echo "Making .venv (once, a few minutes: PyTorch is large)"; $(PYTHON) -m venv --clear .venv; fi
	@rm -f .venv/ready-*
	@$(BIN)/python -m pip install --quiet --no-compile --editable '$(1)'
endef

.venv/ready-run: settings.ini setup.py
	$(call environment,.)
	@touch .venv/ready-run

.venv/ready-dev: settings.ini setup.py
	$(call environment,.[dev])
	@touch .venv/ready-run .venv/ready-dev
