# Two commands for a new user: `make run` trains the built-in job, `make test` runs the whole suite.
PYTHON ?= python3
STAMP := .venv/.installed

.PHONY: run test setup lint clean

run: $(STAMP)
	.venv/bin/zmpsl run

test: $(STAMP) lint
	.venv/bin/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/mypy

setup: $(STAMP)

# Installed again only when a file that says what to install has changed.
$(STAMP): setup.py pyproject.toml constraints.txt $(wildcard codecs/*.c codecs/*.h codecs/kernels/*.h)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,manager,digits,report,dev,bench]"
	touch $(STAMP)

clean:
	rm -rf .venv build *.egg-info
