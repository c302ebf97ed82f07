# Two commands matter: `make serve` and `make test`. Each sets up what it needs.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
# torch's threads must not spin while they wait: two of them on a busy core ran 50 times slower.
export OMP_WAIT_POLICY := PASSIVE
export VERMOUTH_PORT := $(PORT)

.PHONY: serve test prove-engine prove-state prove-hardening prove-client prove-sd15 verify-sd15 bench-serve bench-encoder bench-gpu bench-soak bench-maxima bench-index lint docs format lock clean weights
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Vermouth needs Python 3.11 or newer; try: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve.stamp: pyproject.toml client/pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[cpu]' --editable client
	@touch $@

$(VENV)/test.stamp: pyproject.toml client/pyproject.toml requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[cpu,postgres,train,dev]' --editable client
	@touch $@ $(VENV)/serve.stamp

serve: $(VENV)/serve.stamp ## start on 127.0.0.1:$(PORT) and fill the demo gallery while it answers
	@$(BIN)/vermouth gallery demo --url http://127.0.0.1:$(PORT) & demo=$$!; \
	trap 'kill $$demo 2>/dev/null' EXIT INT TERM; \
	$(BIN)/vermouth serve

# Tests download nothing; `vermouth serve` sets this itself, and `vermouth bundle pull` needs the network.
test prove-engine prove-state: export HF_HUB_OFFLINE := 1
test: $(VENV)/test.stamp ## the whole suite, on the real mini bundle, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadgroup

SCHEDULES ?= 10000
prove-engine: $(VENV)/test.stamp ## ten thousand random schedules of arrivals, departures and faults
	ENGINE_SCHEDULES=$(SCHEDULES) $(BIN)/python -m pytest tests/app/engine/test_schedules.py --durations=1

CHANGES ?= 10000
KILLS_SQLITE ?= 200
KILLS_POSTGRESQL ?= 50
FLIPS ?= 1000
prove-state: $(VENV)/test.stamp ## hundreds of kills on both databases, 10,000 changes in order, 1,000 flipped bits, long random histories; into docs/results/state.md
	ORDER_CHANGES=$(CHANGES) CRASHES_SQLITE=$(KILLS_SQLITE) CRASHES_POSTGRESQL=$(KILLS_POSTGRESQL) \
		FLIPS=$(FLIPS) STORE_EXAMPLES=150 STORE_STEPS=50 REPLICA_WRITES=2000 FILTER_EXAMPLES=3000 \
		STATE_REPORT=docs/results/state.md $(BIN)/python -m pytest tests/app/stores --durations=10

CALLS ?= 10000
prove-client: export HF_HUB_OFFLINE := 1
prove-client: $(VENV)/test.stamp ## the Python client: ten thousand writes through kills and overload, none lost, none done twice
	CLIENT_CALLS=$(CALLS) $(BIN)/python -m pytest tests/client/test_restarts.py --durations=1

FAULTS ?= 1000
REQUESTS ?= 5000
IMAGES ?= 20000
SEED ?= 1
prove-hardening: $(VENV)/test.stamp ## damaged images, odd drawings and protocol faults: no 5xx, no restart, memory and descriptors as before
	$(BIN)/python -m tests.hardening.images --count $(IMAGES) --seed $(SEED)
	$(BIN)/python -m tests.hardening.served_images --seed $(SEED)
	$(BIN)/python -m tests.hardening.requests --count $(REQUESTS) --seed $(SEED)
	$(BIN)/python -m tests.hardening.protocol --count $(FAULTS) --seed $(SEED)

prove-sd15: $(VENV)/test.stamp ## Stable Diffusion 1.5 of random weights: pulled from a local hub, killed, served, asked; into docs/results (20 minutes, 15 GB of disk)
	$(BIN)/python -m tests.e2e.full_scale --arch sd15

verify-sd15: export HF_HUB_OFFLINE := 0
verify-sd15: $(VENV)/test.stamp ## pull Stable Diffusion 1.5 from the hub and check what it finds on photographs
	$(BIN)/vermouth bundle pull sd15
	$(BIN)/python -m tests.e2e.verify sd15

# The peers' packages live apart from ours, on top of them.
PEERS ?= /tmp/peers
$(PEERS)/bin/ray: | $(VENV)/test.stamp
	$(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/vermouth.pth"
	$(PEERS)/bin/python -m pip install --quiet litserve mosec 'ray[serve]'

bench-serve: $(VENV)/test.stamp $(PEERS)/bin/ray ## this service beside its peers, into docs/results (half an hour)
	$(BIN)/python -m benchmarks.serve.run --peers $(PEERS)/bin/python

bench-encoder: $(VENV)/test.stamp ## the encoder's time by stage beside the machine's matrix rate
	$(BIN)/python -m benchmarks.encoder

bench-gpu: $(VENV)/test.stamp ## serving on a GPU, measured and checked, into docs/results (three minutes)
	$(BIN)/python -m benchmarks.gpu

bench-soak: $(VENV)/test.stamp ## memory over ten minutes of steady load
	$(BIN)/python -m benchmarks.soak

bench-maxima: $(VENV)/test.stamp ## every limit at its maximum
	$(BIN)/python -m benchmarks.maxima

bench-index: $(VENV)/test.stamp $(PEERS)/bin/ray ## the vector index beside FAISS HNSW, usearch and Qdrant Edge, into docs/results (twenty minutes)
	$(PEERS)/bin/python -m pip install --quiet usearch qdrant-edge-py
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m benchmarks.index

lint: $(VENV)/test.stamp ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/test.stamp ## the documentation as pages in site/, which open from disk; links are checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/test.stamp ## pin every extra again, for every platform
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command 'make lock' \
		--extra cpu --extra gpu --extra postgres --extra train --extra dev \
		pyproject.toml --output-file requirements.lock

# Every stage continues from its last checkpoint: raise a budget and run it again. On an H100, with
# DEVICE=cuda VAE_MINUTES=0.7 UNET_MINUTES=2.6, the prior sees ten times what the shipped one saw (docs/adr/0023).
DEVICE ?= cpu
WORKERS ?= 2
VAE_MINUTES ?= 30
UNET_MINUTES ?= 100
HEAD_MINUTES ?= 60
ifeq ($(DEVICE),cpu)
VAE_SIZES := --batch 32 --crop 64
UNET_SIZES := --batch 64 --variants 2
else
VAE_SIZES := --batch 64 --crop 128
UNET_SIZES := --batch 1024 --variants 4
endif
GOOD_FOR := 'Photographs of everyday things, emoji, icons, clip art and drawings: found by words and by drawings, classified from a few examples. Masks are good on drawn scenes; on photographs they are rough and know large things better than parts. Brands, people, places, small print and fine differences are guesses.'
GOOD_FOR_ZEROSHOT := 'Measuring what heads make of classes and words that training never saw. Serve mini instead.'
HEADS = $(BIN)/vermouth train heads --prior weights/mini --minutes $(HEAD_MINUTES) --device $(DEVICE)
# torch's large buffers go back to the system after each operation otherwise (docs/studies/photographs.md).
weights: export MALLOC_MMAP_THRESHOLD_ := 1073741824
weights: export MALLOC_TRIM_THRESHOLD_ := 4294967296
weights: $(VENV)/test.stamp ## train weights/mini and weights/mini-zeroshot again: packages, data set, six stages
	$(BIN)/vermouth data build
	$(BIN)/vermouth train views --workers $(WORKERS)
	$(BIN)/vermouth train vae --minutes $(VAE_MINUTES) --device $(DEVICE) $(VAE_SIZES)
	$(BIN)/vermouth train unet --minutes $(UNET_MINUTES) --device $(DEVICE) $(UNET_SIZES)
	$(BIN)/vermouth train export --out weights/mini
	$(HEADS) weights/mini-zeroshot
	$(HEADS) weights/mini --release
	$(HEADS) weights/mini --finish
	$(BIN)/vermouth train photographs weights/mini --release --minutes $(HEAD_MINUTES) --device $(DEVICE)
	$(BIN)/vermouth bundle pack weights/mini --name mini --good-for $(GOOD_FOR)
	$(BIN)/vermouth bundle pack weights/mini-zeroshot --name mini-zeroshot --good-for $(GOOD_FOR_ZEROSHOT) --shared ../mini
	$(BIN)/vermouth bundle verify weights/mini
	$(BIN)/vermouth bundle verify weights/mini-zeroshot

clean:
	rm -rf $(VENV)
