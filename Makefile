# make run     trains a small model on a data set that comes with the requirements, and shows the result
# make test    the fast tests            make slow    the slow ones            make lint    linters and types
# make parity  the tests against PyTorch, Keras, TensorFlow and ONNX Runtime, in an environment of their own (3 GB)
# make bench   ours beside PyTorch, Keras and transformers on this machine, in an environment of its own (3 GB): about an hour
#
# All that is needed is a Python of 3.11 or newer; the first call sets up a virtual environment, later ones use it.
#   make test PYTHON=python3.12     another Python, with an environment of its own
#   make test ARGS="-n 0 -k optim"  more arguments for pytest (or, with make run, for launch.py)
#   make bench ARGS="--only=cnn,gpt --rounds=3"  some subjects; one that was stopped goes on when it is given again

CONFIG = configs/digits_cnn.py
WORKDIR = runs/$(basename $(notdir $(CONFIG)))
ARGS =

OWN = $(addprefix -,$(firstword $(filter parity bench,$(MAKECMDGOALS))))
ifdef PYTHON
VENV ?= .venv-$(subst /,-,$(PYTHON:/%=%))$(OWN)
else
VENV ?= .venv$(OWN)
PYTHON := python3 python3.13 python3.12 python3.11
endif

PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check

.PHONY: run test slow parity bench lint format clean
.DEFAULT_GOAL := run

run: $(VENV)/.installed
	@$(VENV)/bin/python launch.py --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: $(VENV)/.installed-test
	@$(VENV)/bin/python -m pytest -q -n 2 --dist=loadfile --no-loadscope-reorder $(ARGS)

slow: $(VENV)/.installed-test
	@$(VENV)/bin/python -m pytest -q -m slow $(ARGS)

parity: $(VENV)/.installed-parity
	@$(VENV)/bin/python -m pytest -q -rs -n 2 -m parity $(ARGS)

bench: $(VENV)/.installed-bench
	@$(VENV)/bin/python benchmarks/bench.py --plot=docs/speed.png $(ARGS)

lint: $(VENV)/.installed-test
	@failed=0; for check in "ruff check --output-format concise ." "ruff format --check ." mypy "lint-imports --no-cache"; \
	do echo "$$check"; $(VENV)/bin/$$check || failed=1; done; exit $$failed

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache

# The stamp `.installed` stands only while an environment is whole. One that was interrupted is made anew: pip takes a
# package for installed as soon as part of it is there. An environment that was not made here is never wiped.
$(VENV)/.installed: requirements.txt
	@python=; for p in $(PYTHON); do \
	    if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or newer with its venv module is needed, and is none of: $(PYTHON)." \
	         "Install one, or say where it is: make PYTHON=/path/to/python3.12" >&2; exit 2; fi; \
	if [ -e $(VENV)/.made-by-make ] && [ ! -e $@ ]; then rm -rf $(VENV); fi; \
	if [ ! -e $(VENV) ]; then mkdir -p $(VENV) && touch $(VENV)/.made-by-make; fi; \
	rm -f $@; echo "Setting up $(VENV) with $$($$python --version); this takes a minute or two ..."; \
	$$python -m venv $(VENV) && $(PIP) -r requirements.txt && touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	@echo "Adding what the tests need to $(VENV) ..."
	@rm -f $(VENV)/.installed
	@$(PIP) -r requirements-test.txt && touch $(VENV)/.installed $@

$(VENV)/.installed-parity: requirements-parity.txt requirements-export.txt $(VENV)/.installed-test
	@echo "Adding PyTorch, TensorFlow and what else the parity tests need to $(VENV) ..."
	@rm -f $(VENV)/.installed
	@$(PIP) -r requirements-parity.txt && touch $(VENV)/.installed $(VENV)/.installed-test $@

$(VENV)/.installed-bench: requirements-bench.txt requirements-parity.txt requirements-export.txt $(VENV)/.installed-test
	@echo "Adding PyTorch, TensorFlow and what else is measured to $(VENV) ..."
	@rm -f $(VENV)/.installed
	@$(PIP) -r requirements-bench.txt && touch $(VENV)/.installed $(VENV)/.installed-test $@
