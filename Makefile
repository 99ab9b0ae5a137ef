# Wraps CMake (csrc) and go. `make help` lists the targets.
CACHE    ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/conquer
# The folder with torch/lib: fetched into the cache, or the site-packages folder of PyTorch 2.11.
LIBTORCH ?= $(CACHE)/libtorch-2.11.0
# 1 fetches the CUDA libraries too (2 GB), 0 does not. Empty: only if there is an NVIDIA driver.
CUDA     ?=
PREFIX   ?= $(HOME)/.local
PYTHON   ?= python3
GO       ?= go
JOBS     ?= $(shell nproc)
BUILD    ?= $(CURDIR)/build
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# Settings for cgo. Folders are passed through the compiler's path variables and not as flags,
# because flags are part of Go's cache key. Every clone on a machine then shares one compilation of
# gotch's C++, which takes two minutes.
# The path of libtorch is left out of gotch's messages.
export CGO_CXXFLAGS := -include gotch_libtorch_2.11.h -ffile-prefix-map=$(LIBTORCH)=libtorch
export CGO_LDFLAGS        := -Wl,--allow-shlib-undefined -Wl,--as-needed
# The binary holds no paths of this machine and can be loaded at any address. Tests are built alike,
# because otherwise gotch's C++ would be compiled twice.
export GOFLAGS            := -trimpath -buildmode=pie
HEADERS                   := $(LIBTORCH)/torch/include
export CPLUS_INCLUDE_PATH := $(CURDIR)/csrc/gotch:$(HEADERS):$(HEADERS)/torch/csrc/api/include
export C_INCLUDE_PATH     := $(CURDIR)/csrc
export LIBRARY_PATH       := $(BUILD)/lib/conquer:$(LIBTORCH)/torch/lib:$(BUILD)/lib/empty
# The binary finds its libraries relative to itself. Tests run in temporary folders, so they need
# full paths.
RPATH    := $$ORIGIN/../lib/conquer:$$ORIGIN/../lib/conquer/torch/lib
LINK     := -X main.version=$(VERSION) -extldflags=-Wl,-z,relro,-z,now
TESTPATH := $(BUILD)/lib/conquer:$(BUILD)/lib/conquer/torch/lib

.PHONY: help build binary quick test fuzz kills race reproduce sanitize check-binary \
	check-licenses check-csrc check-kernels test-gpu bench bench-shared bench-gpu bench-serve demo \
	experiment parity lint format install env clean csrc kernels gotch libtorch
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

libtorch:
	@cmake -DDESTINATION=$(LIBTORCH) -DPYTHON=$(PYTHON) -DCUDA=$(CUDA) -P cmake/fetch_libtorch.cmake

# gotch's C++ keeps one core busy, so `build` compiles csrc at the same time.
gotch: libtorch
	@[ "$$($(GO) list -f '{{.Stale}}' github.com/sugarme/gotch/libtch)" = false ] || \
		echo "compiling gotch's C++ bindings: 2 to 3 minutes, once per machine ..."
	@$(GO) build github.com/sugarme/gotch/libtch

csrc: libtorch ## the C++ half: CPU kernels and the CUDA part
	@mkdir -p $(BUILD)
	@cmake -S . -B $(BUILD) -DLIBTORCH=$(LIBTORCH) -DPYTHON=$(PYTHON) \
		-DTRITON_HOME=$(CACHE)/triton-3.6.0 > $(BUILD)/configure.log 2>&1 || \
		{ cat $(BUILD)/configure.log; exit 1; }
	@echo "compiling csrc ..."
	@cmake --build $(BUILD) -j $(JOBS) > $(BUILD)/csrc.log 2>&1 || \
		{ cat $(BUILD)/csrc.log; exit 1; }

# A machine without a GPU compiles the kernels too, so that the build also runs on a GPU.
kernels: csrc ## the Triton kernels, compiled ahead of time
	@[ -e $(BUILD)/lib/conquer/kernels/stamp ] || \
		echo "compiling the Triton kernels (and fetching triton, 190 MB, once per machine) ..."
	@cmake --build $(BUILD) --target triton_kernels > $(BUILD)/kernels.log 2>&1 || \
		{ tail -n 3 $(BUILD)/kernels.log; echo "the Triton kernels were NOT compiled \
		(build/kernels.log): state-space models will not run on a GPU"; }

GOBUILD = $(GO) build -o $(BUILD)/bin/ -ldflags '-r $(RPATH) $(LINK)' ./cmd/conquer

binary: libtorch
	@$(MAKE) --no-print-directory -j2 gotch csrc
	@$(GOBUILD)

build: libtorch ## build/bin/conquer
	@$(MAKE) --no-print-directory -j2 gotch kernels
	@$(GOBUILD)
	@echo "built $(patsubst $(CURDIR)/%,%,$(BUILD)/bin/conquer)"

# Test packages share the cores, so waiting OpenMP threads must not spin.
GOTEST := OMP_WAIT_POLICY=passive $(GO) test -timeout 20m -ldflags '-r $(TESTPATH)'

quick: build ## vet and unit tests, without those of several processes, kills and resumes
	@$(GO) vet ./...
	@$(GOTEST) -short ./...

test: build check-binary check-licenses check-csrc check-kernels ## every test without a GPU
	@$(GO) vet ./...
	@$(GOTEST) ./...

N ?= 250
EXPORTS ?= 100
kills: build ## kill training N times and exports EXPORTS times at random moments
	$(GO) run ./tools/kills -binary $(BUILD)/bin/conquer -training $(N) -exports $(EXPORTS)

# Go's cache keeps the inputs that reached new code, or FUZZ_CORPUS does.
TIME ?= 1m
fuzz: build ## every fuzz target for TIME (1m); FUZZ=REGEXP chooses targets
	@GOFLAGS="$(GOFLAGS) '-ldflags=-r $(TESTPATH)'" $(GO) run ./tools/fuzz -time $(TIME) \
		-jobs $(JOBS) -match '$(FUZZ)' -corpus '$(FUZZ_CORPUS)' ./...

check-binary: build ## protections of the binary and the libraries, and no paths in them
	@tools/check-binary.sh $(BUILD) $(CURDIR) $(HOME)

check-licenses: build ## license texts of all that `make install` installs
	@tools/licenses.sh $(GO) $(BUILD)/bin/conquer $(LIBTORCH) $(BUILD)/licenses

race: ## the tests of the packages without libtorch with Go's race detector
	@GOFLAGS= $(GO) test -race -short $$(tools/pure-packages.sh $(GO))

reproduce: ## builds the last commit in two folders and compares the results
	@tools/reproduce.sh

# libtorch is not instrumented. Classes of its headers are defined in its libraries too, and what it
# keeps until the process ends is in leaks.txt.
sanitize: kernels ## the C++ checks with AddressSanitizer and UndefinedBehaviorSanitizer
	@mkdir -p $(BUILD)/sanitize
	@{ cmake -S . -B $(BUILD)/sanitize -DSANITIZE=ON -DLIBTORCH=$(LIBTORCH) \
		-DPYTHON=$(PYTHON) && cmake --build $(BUILD)/sanitize -j $(JOBS) \
		--target csrc_test csrc_ssd_test csrc_keys_test; } \
		> $(BUILD)/sanitize.log 2>&1 || { cat $(BUILD)/sanitize.log; exit 1; }
	@export ASAN_OPTIONS=detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LSAN_OPTIONS=suppressions=$(CURDIR)/csrc/test/leaks.txt:print_suppressions=0 && \
		$(BUILD)/sanitize/csrc_test check && $(BUILD)/sanitize/csrc_ssd_test cpu quick && \
		$(BUILD)/sanitize/csrc_keys_test $(BUILD)/lib/conquer/kernels/sm_90/manifest

check-csrc: kernels ## the C++ checks: CPU kernels, the scan, and the keys of the GPU kernels
	@cmake --build $(BUILD) -j $(JOBS) --target csrc_test csrc_ssd_test csrc_keys_test \
		csrc_gpu_test > $(BUILD)/csrc.log 2>&1 || { cat $(BUILD)/csrc.log; exit 1; }
	@$(BUILD)/csrc_test check
	@$(BUILD)/csrc_ssd_test cpu quick
	@$(BUILD)/csrc_keys_test $(BUILD)/lib/conquer/kernels/sm_90/manifest

check-kernels: kernels ## the Triton kernels in Triton's interpreter
	@csrc/triton/check/run.sh $(CACHE) $(PYTHON)

test-gpu: build ## the tests that need a GPU; without one each test says that it was skipped
	@cmake --build $(BUILD) --target csrc_gpu_test > $(BUILD)/csrc.log 2>&1 || \
		{ cat $(BUILD)/csrc.log; exit 1; }
	@$(BUILD)/csrc_gpu_test
	@$(GO) test -count 1 -v -run GPU -ldflags '-r $(TESTPATH)' ./cmd/conquer ./torch/dist

demo: build ## tunes SmolLM2-135M on examples/lighthouse: one to five minutes on 2 cores
	@tools/demo.sh $(BUILD)/bin/conquer

experiment: build ## trains a small Bamba, compares chunking strategies, draws a report: 10 minutes
	@GO=$(GO) tools/experiment.sh $(BUILD)/bin/conquer

bench: build ## the CPU table of docs/performance.md (needs `make parity`'s Python environment)
	@tools/bench-cpu.sh $(BUILD)/bin/conquer $(CACHE)/parity $(PYTHON)

bench-shared: build ## decoding and training beside busy processes (MODEL: a model to open)
	@tools/bench-shared.sh $(BUILD)/bin/conquer $(MODEL)

bench-gpu: build ## conquer beside transformers on a GPU (PYTHON: with torch, transformers, peft)
	@tools/bench-gpu.sh $(BUILD)/bin/conquer $(PYTHON)

bench-serve: build ## a server with 256 requests on a GPU, random weights
	@tools/bench-serve.sh $(BUILD)/bin/conquer

install: build ## one binary and its libraries under PREFIX (~/.local)
	@cmake -DBUILD=$(BUILD) -DPREFIX=$(DESTDIR)$(PREFIX) -DLIBTORCH=$(LIBTORCH) -DGO=$(GO) \
		-P cmake/install.cmake

lint: csrc ## gofmt, go vet, staticcheck, clang-format, line lengths
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	@$(GO) vet ./...
	@$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.7.0 ./...
	@tools/clang-format.sh $(CACHE) $(PYTHON) --dry-run -Werror
	@$(PYTHON) tools/columns.py

format: ## rewrites Go and C++ in the project's format
	@gofmt -w .
	@tools/clang-format.sh $(CACHE) $(PYTHON) -i

parity: build ## comparisons with transformers, tokenizers, jinja2, peft and llama.cpp
	@GOFLAGS="$(GOFLAGS) '-ldflags=-r $(TESTPATH)'" \
		tools/parity/run.sh $(BUILD)/bin/conquer $(CACHE)/parity $(PYTHON)

env: ## the settings for calling go by hand: eval "$(make env)"
	@echo 'export CGO_CXXFLAGS="$(CGO_CXXFLAGS)" CGO_LDFLAGS="$(CGO_LDFLAGS)"'
	@echo 'export GOFLAGS="$(GOFLAGS)"'
	@echo 'export CPLUS_INCLUDE_PATH="$(CPLUS_INCLUDE_PATH)" C_INCLUDE_PATH="$(C_INCLUDE_PATH)"'
	@echo 'export LIBRARY_PATH="$(LIBRARY_PATH)" LD_LIBRARY_PATH="$(TESTPATH)"'

clean: ## removes build/ (libtorch and Go's cache stay)
	@rm -rf $(CURDIR)/build
