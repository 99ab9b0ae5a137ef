# The front door over CMake (csrc) and go. `make help` lists the targets.
CACHE     ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/conquer
# A folder that holds torch/lib: the cache by default, or the site-packages folder of an installed PyTorch 2.11.
LIBTORCH  ?= $(CACHE)/libtorch-2.11.0
PREFIX    ?= $(HOME)/.local
PYTHON    ?= python3
JOBS      ?= $(shell nproc)
ROOT      := $(CURDIR)
BUILD     := $(ROOT)/build

# What cgo needs. The folders go through the compiler's own path variables rather than flags, because flags are part of
# Go's cache key: gotch's C++, two minutes of compiling, is then reused by every clone on the machine.
export CGO_CXXFLAGS       := -include gotch_libtorch_2.11.h
export CGO_LDFLAGS        := -Wl,--allow-shlib-undefined -Wl,--as-needed
export CPLUS_INCLUDE_PATH := $(ROOT)/csrc/gotch:$(LIBTORCH)/torch/include:$(LIBTORCH)/torch/include/torch/csrc/api/include
export LIBRARY_PATH       := $(BUILD)/lib/conquer:$(LIBTORCH)/torch/lib:$(BUILD)/lib/empty
export C_INCLUDE_PATH     := $(ROOT)/csrc
# A binary finds its libraries beside itself, wherever the tree is moved; tests run from temporary folders.
RPATH     := $$ORIGIN/../lib/conquer:$$ORIGIN/../lib/conquer/torch/lib
TESTPATH  := $(BUILD)/lib/conquer:$(BUILD)/lib/conquer/torch/lib
GO        ?= go
VERSION   := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: help build demo test lint fmt install clean parity csrc libtorch env bench
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

libtorch: $(LIBTORCH)/torch/lib/libtorch_cpu.so
$(LIBTORCH)/torch/lib/libtorch_cpu.so:
	@tools/fetch-libtorch.sh "$(LIBTORCH)" "$(PYTHON)"

csrc: libtorch ## the C++ half: CPU kernels, CUDA loader
	@cmake -S . -B $(BUILD) -DLIBTORCH=$(LIBTORCH) > $(BUILD).log 2>&1 || { cat $(BUILD).log; rm -f $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log
	@$(MAKE) --no-print-directory -C $(BUILD) -j$(JOBS) | grep -vE '^\[|Consolidate|^make' || true
	@test -e $(BUILD)/lib/conquer/libconquer_cuda.so

build: csrc ## build/bin/conquer
	@tools/gotch-notice.sh
	@$(GO) build -ldflags '-r $(RPATH) -X main.version=$(VERSION)' -o $(BUILD)/bin/conquer ./cmd/conquer
	@echo "built build/bin/conquer"

test: csrc ## every test that runs without a GPU
	@tools/gotch-notice.sh
	@$(GO) vet ./... && $(GO) test -ldflags '-r $(TESTPATH)' ./...

env: ## prints what to eval before calling go by hand: eval "$$(make env)"
	@echo 'export CGO_CXXFLAGS="$(CGO_CXXFLAGS)" CGO_LDFLAGS="$(CGO_LDFLAGS)"'
	@echo 'export CPLUS_INCLUDE_PATH="$(CPLUS_INCLUDE_PATH)" C_INCLUDE_PATH="$(C_INCLUDE_PATH)"'
	@echo 'export LIBRARY_PATH="$(LIBRARY_PATH)" LD_LIBRARY_PATH="$(TESTPATH)"'
