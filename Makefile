# Each target is one `python -m …` whose --help is complete. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
STAMP := $(VENV)/.up-to-date
PY := $(VENV)/bin/python

# What the user gives on the command line reaches the commands through the environment, where no shell reads it again.
DATASET ?= folder
DATA ?= build/data
RECIPE ?= paper
USER_VALUES := DATASET SOURCE METADATA DATA LIMIT GROUP_BY WORKERS ANN ENGINE CAUSE COLUMNS FITS PERSON KEYS RUN RECIPE STAGE1 VAE IMAGE_ENCODER NODES JOB \
  WIDTH HEIGHT REFERENCE AUDIO OUT WEIGHTS ADAPTER ARGS
# Make itself would run the `$(shell …)` in a value and turn /x/a$$b into /x/a. From here on all of them are plain text.
given := $(sort $(USER_VALUES) $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
$(foreach name,$(given),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

# `$(run) MODULE …` is `python -m MODULE …` with the options in ARGS at its end, which no shell reads either.
run := $(PY) -m talkinghead.runtime.make_command
source_args = --dataset="$$DATASET" $(if $(SOURCE),--source="$$SOURCE") $(if $(METADATA),--metadata="$$METADATA") $(if $(LIMIT),--limit="$$LIMIT")
group_args = $(if $(GROUP_BY),--group-by="$$GROUP_BY")
remove_args = $(if $(PERSON),--person="$$PERSON") $(if $(KEYS),--keys="$$KEYS")
worker_args = $(if $(WORKERS),--workers="$$WORKERS")
train_args = "$$RECIPE" --data="$$DATA" --run="$$RUN" $(if $(WORKERS),--workers="$$WORKERS")
latent_args = $(if $(VAE),--vae="$$VAE") $(if $(IMAGE_ENCODER),--image-encoder="$$IMAGE_ENCODER") $(if $(WIDTH),--width="$$WIDTH") $(if $(HEIGHT),--height="$$HEIGHT")
version_args = $(if $(ANN),--version="$$ANN") $(if $(ENGINE),--engine="$$ENGINE")
# A file's tests stay in one process: they share what its fixtures make.
test_args = --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help setup models demo test test-all test-cluster bench lint ingest annotate shards verify report reannotate quarantine retry remove gc download derive latents basis train-audio2mesh train-audio2pose train-stage1 train-stage2 animate cluster-up cluster-down submit status clean

help: ## Show this list
	@echo "talkinghead: raw face video in, trained and running talking-head models out."
	@echo
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-17s %s\n' "$$name" "$$text"; done
	@echo
	@echo "  DATASET=hdtf|celebv-hq|vfhq|folder  SOURCE=dir  DATA=dir|uri  [METADATA=dir] [LIMIT=n] [WORKERS=n] [RAY_ADDRESS=…]"
	@echo "  GROUP_BY=parent|level:N|regex:PATTERN (DATASET=folder: who is on a file, by its path)  PERSON=name|KEYS=file"
	@echo "  RUN=dir  RECIPE=tiny|paper|…  STAGE1=dir     VAE=dir  IMAGE_ENCODER=dir  [WIDTH=512] [HEIGHT=512]"
	@echo "  REFERENCE=face.png  AUDIO=speech.wav  OUT=video.mp4  WEIGHTS=dir  [ADAPTER=dir] [DRIVER=audio2lmk|video|file|still] [RENDERER=lmk2video|landmarks]"
	@echo "  NODES=n  JOB='target NAME=value …' (a target of this list with its variables)"
	@echo "  COLUMNS=latents,mouth,labels,speech_activity,sync  FITS=speakers,expression"
	@echo "  ANN=version  ENGINE=litert|litert-tracking|tasks|tasks-image  CAUSE=cause  ARGS='further options of a target's command; ARGS=--help lists them'"

$(STAMP): pyproject.toml constraints.txt build-tools.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"error: Python 3.11 or later is needed, python3 is {sys.version.split()[0]}")'
	@python3 -c 'import ensurepip' 2>/dev/null || { echo "error: python3 cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement build-tools.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --only-binary :all: --no-build-isolation --editable '.[dev,download]'
	$(PY) -m talkinghead.runtime.native
	@touch $@

setup: $(STAMP) ## Make the virtual environment (does nothing when it is up to date)

models: $(STAMP) ## Find or fetch the face landmark model and the weights of the column speech_activity
	$(run) annotate models

demo: $(STAMP) ## Embedded sample → shards → four tiny trainings → an animated portrait
	$(run) orchestration demo --data build/demo $(worker_args)

test: $(STAMP) ## Run the tests
	$(run) pytest $(test_args)

test-all: $(STAMP) ## Run all tests, the slow ones too
	$(run) pytest -m 'slow or not slow'

test-cluster: $(STAMP) ## Run the tests that start clusters of several nodes and break them
	$(run) pytest -m cluster --numprocesses 0

bench: $(STAMP) ## Measure against the peers; writes build/bench.json
	$(run) orchestration.bench --output build/bench.json

lint: $(STAMP) ## Check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

ingest: $(STAMP) ## Cut and crop a data set's clips: 25 fps, 16 kHz
	$(run) orchestration ingest $(source_args) $(group_args) --data="$$DATA" $(worker_args)

annotate: $(STAMP) ## Annotate the ingested clips: landmarks, mesh, pose, blendshapes, quality
	$(run) orchestration annotate --data="$$DATA" $(version_args) $(worker_args)

shards: $(STAMP) ## Pack WebDataset shards and their index (runs what is missing before)
	$(run) orchestration shards $(if $(SOURCE),$(source_args) $(group_args)) --data="$$DATA" $(version_args) $(worker_args)

verify: $(STAMP) ## Check hashes, counts, order, media and annotation of the shards
	$(run) shards verify --data="$$DATA" $(if $(ANN),--version="$$ANN")

report: $(STAMP) ## Write DATA/report/index.html
	$(run) orchestration report --data="$$DATA" $(if $(ANN),--version="$$ANN")

reannotate: $(STAMP) ## Annotate the packed clips anew as version ANN; media stay untouched
	$(run) orchestration reannotate --data="$$DATA" $(version_args) $(worker_args)

quarantine: $(STAMP) ## List the inputs that failed, by cause
	$(run) orchestration quarantine --data="$$DATA"

retry: $(STAMP) ## Release the inputs of CAUSE (or all) from quarantine; the next run tries them again
	$(run) orchestration retry --data="$$DATA" $(if $(CAUSE),--cause="$$CAUSE")

remove: $(STAMP) ## Take a person (PERSON=name) or samples (KEYS=file) out of DATA for good, with proof by counts
	$(run) orchestration remove --data="$$DATA" $(remove_args)

gc: $(STAMP) ## Free what packing no longer needs, and take removed samples out of the shards
	$(run) orchestration gc --data="$$DATA"

download: $(STAMP) ## Download a data set's videos into SOURCE (yt-dlp; resumable)
	$(run) ingest download $(source_args)

derive: $(STAMP) ## Make derived columns COLUMNS=mouth,speech_activity,… of the packed samples, for trainings to join
	$(run) orchestration derive --columns="$$COLUMNS" --data="$$DATA" $(worker_args)

latents: $(STAMP) ## Encode the packed images once for both stages (VAE moments, CLIP embeddings)
	$(run) orchestration latents --data="$$DATA" $(latent_args) $(worker_args)

basis: $(STAMP) ## Make global fits FITS=speakers,expression over the training clips, which trainings read
	$(run) orchestration basis --data="$$DATA" $(if $(FITS),--fits="$$FITS") $(if $(ANN),--annotation="$$ANN") $(worker_args)

train-audio2mesh: $(STAMP) ## Train speech → mesh from the shards; the same command resumes
	$(run) train audio2mesh $(train_args)

train-audio2pose: $(STAMP) ## Train speech → head pose from the shards; the same command resumes
	$(run) train audio2pose $(train_args)

train-stage1: $(STAMP) ## Train portrait and landmarks → image from the shards; the same command resumes
	$(run) train stage1 $(train_args)

train-stage2: $(STAMP) ## Train motion on top of STAGE1=RUN of stage 1; the same command resumes
	$(run) train stage2 $(train_args) $(if $(STAGE1),--config.stage1="$$STAGE1")

animate: $(STAMP) ## Animate a portrait: REFERENCE=face.png AUDIO=speech.wav OUT=video.mp4 WEIGHTS=dir
	$(run) infer animate $(if $(DRIVER),--driver="$$DRIVER") $(if $(RENDERER),--renderer="$$RENDERER") $(if $(REFERENCE),--reference="$$REFERENCE") $(if $(AUDIO),--audio="$$AUDIO") $(if $(WEIGHTS),--weights="$$WEIGHTS") $(if $(ADAPTER),--adapter="$$ADAPTER") $(if $(OUT),--output="$$OUT")

cluster-up: $(STAMP) ## Start a Ray cluster of NODES=2 nodes on this machine to try out; prints its RAY_ADDRESS
	$(run) orchestration.cluster up $(if $(NODES),--nodes="$$NODES")

cluster-down: $(STAMP) ## End that cluster, with all of its processes
	$(run) orchestration.cluster down

submit: $(STAMP) ## Send a job to a cluster and follow it: JOB="reannotate ANN=v3 DATA=s3://…" [RAY_ADDRESS=…]
	$(run) orchestration.cluster submit --job="$$JOB"

status: $(STAMP) ## Show how far the jobs of DATA are, their speed and failures; with RAY_ADDRESS=… also the cluster's nodes
	$(run) orchestration status --data="$$DATA"

clean: ## Remove build/ and caches
	rm -rf build .pytest_cache .ruff_cache .hypothesis
