# Everything sets itself up in .venv beside the sources; a second call does not install again.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint bench weights clean

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# torch and torchvision are resolved in one go, so that their releases match
.venv/installed-test: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .[test]
	touch $@ .venv/installed

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/python train_p2.py --recipe scenes-demo --out runs/demo
	$(BIN)/python -m eval.pointing --weights runs/demo/best.safetensors
	$(BIN)/python viz.py caption --weights runs/demo/best.safetensors --out runs/demo/pictures
	$(BIN)/python -m eval.scenes --out runs/demo/scenes --one-kind
	$(BIN)/python -m eval.caption --images runs/demo/scenes/photos --weights runs/demo/best.safetensors \
	    --out runs/demo/captions.json
	$(BIN)/python -m eval.score --predictions runs/demo/captions.json --references runs/demo/scenes/references.json \
	    --images runs/demo/scenes/photos --clip scenes-clip --out runs/demo/scores.json
	$(BIN)/python viz.py ranking --predictions runs/demo/captions.json --images runs/demo/scenes/photos \
	    --clip scenes-clip --weights runs/demo/best.safetensors --out runs/demo/pictures/ranking.png
	$(BIN)/python -m eval.zeroshot --images runs/demo/scenes/photos --weights scenes-clip --templates course --template "a {}" \
	    --out runs/demo/classes.csv --top5 runs/demo/pictures/top5.png
	@echo "weights, history and plot: runs/demo    pictures, word by word: runs/demo/pictures"

test: .venv/installed-test
	$(BIN)/python -m pytest

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-test
	$(BIN)/python -m flake8
	$(BIN)/python -m isort --check-only --diff .
	$(BIN)/python -m mypy

bench: .venv/installed-test
	$(BIN)/python -m bench.capture
	$(BIN)/python -m bench.training
	$(BIN)/python -m bench.classify step
	$(BIN)/python -m bench.metrics

# the shipped captioner (the demo's recipe, longer) and the image-text pair that starts from its encoder
weights: .venv/installed
	rm -rf runs/scenes-captioner
	$(BIN)/python train_p2.py --recipe scenes-captioner --out runs/scenes-captioner
	$(BIN)/python -m weights.ship runs/scenes-captioner --name scenes-captioner
	rm -rf runs/scenes-clip
	$(BIN)/python train_p2.py --recipe scenes-clip --out runs/scenes-clip
	$(BIN)/python -m weights.ship runs/scenes-clip --name scenes-clip

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache
