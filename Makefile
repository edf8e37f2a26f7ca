# Each target makes its own .venv if there is none. PYTHON picks the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data

.PHONY: demo test lint bench bench-accuracy bench-decoders bench-scale docs clean

# torch goes first and by its pinned version: the resolver then leaves it alone.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/ready
	$(BIN)/python examples/demo.py $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The real teacher is fetched if it can be; without it the tests that need it skip and say so. A file of tests is one process's.
test: lint
	-$(BIN)/python examples/real_data.py
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Speed, in about 20 minutes: writes benchmarks/results.json and docs/performance.md.
bench: .venv/ready
	$(BIN)/python benchmarks/performance.py --data $(DATA)

# Senses beside everything else, and one setting after the other: benchmarks/comparison.json and defaults.json with their pages
# docs/results.md and docs/recipes.md, a few hours of one core; jobs that are there are not run again. Then the other tables.
bench-accuracy: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compare.py --data $(DATA) --work runs/comparison
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/defaults.py --data $(DATA) --work runs/comparison
	$(BIN)/python benchmarks/banking77.py --data $(DATA)/banking77
	$(BIN)/python benchmarks/word_senses.py --data $(DATA)/coarsewsd20
	$(BIN)/python benchmarks/costs.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fine_tuning.py --data $(DATA)/sst2
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/small_students.py --data $(DATA)/banking77
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/small_students.py --data $(DATA)/tweeteval_emotion --shots 16
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/token_classification.py --data $(DATA)/coarsewsd20
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/retrieval.py --data $(DATA)/banking77
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/residual_codes.py --data $(DATA)/banking77 --labels 8 \
	  --data $(DATA)/tweeteval_emotion --labels 16 --data $(DATA)/sst2 --labels 16 --data $(DATA)/cola --labels 16
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/budgets.py --data $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/domains.py --data $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/domain_students.py --data $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learned_senses.py --data $(DATA)/banking77
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learned_senses.py --data $(DATA)/tweeteval_emotion --shots 16 --epochs 5

# Builds of any size: growth, two processes, kills, faults, broken input, and what a cluster would do; one to two hours.
bench-scale: .venv/ready
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/soak.py --tokens 2e7 --kills 20
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/fuzz.py --cases 1000000
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/one_pass.py --data $(DATA)/banking77
	$(BIN)/python benchmarks/cluster.py
	$(BIN)/python benchmarks/sizes.py

# A small decoder is fetched, adapted both ways on texts without labels (resumes), and measured: about an hour.
ADAPT = $(BIN)/hf-sense adapt --base "$$base" --dataset $(DATA)/banking77/train.jsonl --max-length 64 --bf16 true
bench-decoders: .venv/ready
	base="$$($(BIN)/python examples/smollm2.py)" && \
	$(ADAPT) --output runs/smollm2-bidirectional --mntp-steps 60 && \
	$(ADAPT) --output runs/smollm2-causal --attention causal
	$(BIN)/python benchmarks/decoders.py --data $(DATA)/banking77 --adapters runs/smollm2-bidirectional \
	  --causal-adapters runs/smollm2-causal --max-senses 20 n/10,100

# The site in site/, its tutorials executed and its warnings errors; without the real model it says which pages were not run.
docs: .venv/ready
	-$(BIN)/python examples/real_data.py
	$(BIN)/python -m pytest tests/test_house.py
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv runs site
