# mmx: `make demo` trains Muse on real images and shows what it draws; `make test` checks it all.
# Needs Python >= 3.11 and nothing else. PYTHON=/path/to/python picks one; ACCEL=cpu ignores a GPU.

ACCEL := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
DEMO := .venv/.installed-$(ACCEL)
TEST := .venv-test/.installed
PARITY := .venv-parity/.installed
SIZE_cpu := 300 MB
SIZE_cuda := 3 GB
VERSIONS := setup.py constraints/install.sh $(wildcard constraints/*.txt)

.PHONY: demo test lint parity clean

# Ten minutes on two cores. Each step goes on from where it was, and takes seconds when it is done.
demo: $(DEMO)
	@echo "[2/5] data: OpenMoji pictures and their names -> data/"
	@.venv/bin/mmx prepare openmoji --config 32 --data_dir data
	@echo "[3/5] image tokenizer -> runs/demo/vqgan"
	@.venv/bin/mmx train --config vqgan/openmoji32 --workdir runs/demo/vqgan \
	    --config.data.data_dir=data
	@echo "[4/5] Muse, text to image -> runs/demo/muse"
	@.venv/bin/mmx train --config muse/openmoji32 --workdir runs/demo/muse \
	    --config.data.data_dir=data --config.codec.run=runs/demo/vqgan
	@echo "[5/5] pictures and scores"
	@.venv/bin/mmx evaluate runs/demo/muse

# Builds its own environment; needs no network once that is there, and no accelerator.
test: $(TEST)
	@JAX_PLATFORMS=cpu .venv-test/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(TEST)
	@.venv-test/bin/ruff check
	@.venv-test/bin/ruff format --check

# Published weights, metrics and solvers beside the libraries they come from, in an environment apart.
# IMAGES=DIR with 000000039769.jpg (COCO) and CLIP.png (OpenAI) checks the published logits too.
parity: $(PARITY)
	@JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 .venv-parity/bin/python experiments/parity/run.py \
	    $(if $(IMAGES),--images $(IMAGES))
	@JAX_PLATFORMS=cpu .venv-parity/bin/python experiments/parity/metrics.py
	@JAX_PLATFORMS=cpu .venv-parity/bin/python experiments/parity/solvers.py
	@JAX_PLATFORMS=cpu .venv-parity/bin/python experiments/parity/gguf_files.py
	@JAX_PLATFORMS=cpu .venv-parity/bin/python experiments/parity/sentence_packages.py

# Keeps data/ and runs/.
clean:
	rm -rf .venv .venv-test .venv-parity .venv.log .venv-test.log .venv-parity.log build dist *.egg-info .pytest_cache .ruff_cache

$(DEMO): $(VERSIONS)
	@echo "[1/5] installing into .venv for $(ACCEL) (the first time downloads $(SIZE_$(ACCEL)))"
	@constraints/install.sh .venv demo $(ACCEL)
	@touch $@

$(TEST): $(VERSIONS)
	@constraints/install.sh .venv-test demo,test,dev
	@touch $@

$(PARITY): $(VERSIONS) experiments/parity/metrics.txt
	@constraints/install.sh .venv-parity parity
	@.venv-parity/bin/python -m pip install --quiet --no-deps -r experiments/parity/metrics.txt
	@touch $@
