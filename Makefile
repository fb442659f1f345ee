# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
# This release's wheel is the CPU build on some indexes; TORCH=torch takes whatever suits your machine.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# What the demo needs, and everything that tests use besides.
DEMO := $(VENV)/.demo
READY := $(VENV)/.ready
# What computes in the demo's page, by npm or by its package for Python: 33 MB to fetch and 41 MB on the disk.
PAGE := $(VENV)/.page

# Training takes an interpreter that PYTHON names as it is, with what is installed for it; else it takes this one.
TRAIN_PYTHON := $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))
TRAIN_READY := $(if $(filter file,$(origin PYTHON)),$(READY))
TRAIN_RUN = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(TRAIN_PYTHON)
MINUTES ?= 8
DEVICE ?= cuda
# `make numbers` without a MODEL is for all of them.
TRAINED := $(or $(MODEL),pp_atd_light_x2)
INIT ?= models/$(TRAINED)/weights.safetensors
PATCH ?= 64

.PHONY: demo test test-slow test-cpus test-boards lint docs numbers bundle wheel-test train-data train-gpu clean

demo: $(DEMO) $(PAGE)
	$(BIN)/ppexport demo -o demo

test: $(READY) $(PAGE) lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

# Every golden case through its own export, and whatever else takes minutes.
test-slow: $(READY) $(PAGE)
	$(BIN)/python -m pytest -m slow

# The tests of numerics under other instruction sets that this machine can imitate.
test-cpus: $(READY)
	bash tests/cpus.sh $(BIN)/python

# What boards get, under the Pythons and NumPys that they have, as far as this machine has such a Python.
test-boards: $(READY)
	$(BIN)/python tests/boards.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site in build/docs/site; it fails on a broken link, and on a page that the navigation lacks.
docs: $(READY)
	$(BIN)/python tools/build_docs.py build/docs
	@echo "build/docs/site is complete; to read it: $(BIN)/python -m http.server --directory build/docs/site"

# What depends on the bundled weights and was measured with others, again: make numbers IMAGES=DIR [MODEL=NAME] [ONLY=TEXT].
numbers: $(READY) $(PAGE)
	$(if $(IMAGES),,$(error make numbers IMAGES=DIR, a folder with the test sets set5 and set14))
	$(BIN)/python tools/renew_numbers.py "$(IMAGES)" $(if $(MODEL),--model "$(MODEL)") $(if $(ONLY),--only "$(ONLY)")

# A trained network's weights into models/, if they are better than those there; make numbers comes next.
bundle: $(READY)
	$(if $(and $(MODEL),$(WEIGHTS),$(IMAGES)),,$(error make bundle MODEL=NAME WEIGHTS=FILE IMAGES=DIR [ABOUT=FILE.yaml]))
	$(BIN)/python tools/bundle.py "$(MODEL)" "$(WEIGHTS)" "$(IMAGES)" $(if $(ABOUT),--about "$(ABOUT)")

# Adds the pictures below a folder to train-data/, which git ignores: make train-data FROM=DIR.
train-data: $(TRAIN_READY)
	$(if $(FROM),,$(error make train-data FROM=DIR, a folder with pictures to train on))
	$(TRAIN_RUN) tools/train_data.py "$(FROM)" train-data

# A warm restart from the bundled weights, or from INIT, that ends after MINUTES and continues when it is run again;
# docs/training.md says more. TRAIN holds further options of tools/train.py.
train-gpu: $(TRAIN_READY)
	$(TRAIN_RUN) tools/train.py --run "$(or $(OUT),runs)/$(TRAINED)-gpu" --data train-data --init "$(INIT)" \
	  --arch $(firstword $(subst _x, ,$(TRAINED))) --scale $(lastword $(subst _x, ,$(TRAINED))) \
	  --device $(DEVICE) --minutes $(MINUTES) --save-minutes 1 --val-minutes 1 --holdout 8 \
	  --pixels 65536 --patch $(PATCH) --lr 5e-4 --warmup 100 --ema 0.999 $(TRAIN)

$(DEMO): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" -e ".[export,onnx,web]"
	touch $(DEMO)

# Where this fails everything else works: the demo makes no page and says why, and tests that need one are skipped.
$(PAGE): $(DEMO)
	-$(BIN)/python tools/onnxruntime_web.py && touch $(PAGE)

$(READY): $(DEMO)
	$(BIN)/python -m pip install --quiet "$(TORCH)" \
	  -e ".[export,onnx,tensorrt-rtx,coreml,coreai,openvino,litert,executorch,qnn,web,heif,docs,test]"
	touch $(READY)

# The wheel in a second environment without torch, as on a device.
wheel-test: $(READY)
	bash tests/wheel.sh $(BIN)/python

clean:
	rm -rf $(VENV) build dist demo *.egg-info
