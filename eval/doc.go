// Package eval measures language models on tasks as EleutherAI's lm-evaluation-harness 0.4.13 does:
// the same requests, metrics, standard errors and layout of results. [Load] reads tasks: known ones
// by name, others from YAML files of lm-eval's form. [Run] evaluates a [Model] on them.
package eval
