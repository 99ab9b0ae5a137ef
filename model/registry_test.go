package model_test

import (
	"strings"
	"testing"

	_ "conquer/families"
	"conquer/model"
)

func TestVariant_ErrorNamesTheArchitecturesOwnVariants(t *testing.T) {
	_, err := model.Variant("qwen3", "bamba")
	if err == nil || !strings.Contains(err.Error(), "0.6b, ") ||
		strings.Contains(err.Error(), "mamba2") {
		t.Errorf("a variant that qwen3 does not have: %v", err)
	}
	_, err = model.Variant("qwen4", "8b")
	if err == nil || !strings.Contains(err.Error(), "choose one of bamba, ") ||
		!strings.HasSuffix(err.Error(), ", smollm3") {
		t.Errorf("an unknown architecture: %v", err)
	}
}
