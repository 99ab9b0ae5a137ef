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
	list := "choose one of bamba, granite, llama, mamba2, mixtral, qwen3, qwen3_moe, smollm3"
	if err == nil || !strings.HasSuffix(err.Error(), list) {
		t.Errorf("an unknown architecture: %v", err)
	}
}
