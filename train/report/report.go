// Package report shows and records the progress of a training run: lines on a console,
// metrics.jsonl, TensorBoard event files, and a plot of the loss.
package report

// Step is the result of one optimizer step.
type Step struct {
	Step    int     // from 1
	Epoch   float64 // passes over the data set, including the fraction of the current one
	Loss    float64 // mean over the step's labels, in nats
	Rate    float64 // learning rate
	Norm    float64 // of the gradients, before clipping
	Skipped bool    // the loss or the gradients were not finite: the weights did not change
	Tokens  int     // without padding
	Seconds float64
	Memory  int64 // bytes that the process has resident, or that libtorch has allocated on the GPU
	// Measures are further numbers of the objective. "objective" is the loss including label
	// smoothing and z-loss, which Loss excludes. If answers are compared, Loss is a mean over
	// samples, as are "reward_chosen" and "reward_rejected" (beta times the answer's
	// log-probability minus the reference's), "reward_margin" (their difference) and "accuracy"
	// (how often it is positive). "nll_chosen" is the mean negative log-likelihood of the preferred
	// answers, over their tokens, if the loss contains it. For KTO the rewards are means over the
	// desirable and over the other answers, "kl" is the estimated divergence from the reference,
	// and "accuracy" says how often a desirable answer is above it and another one below.
	Measures []Measure
}

// Validation is the result of a validation after a step. Step 0 is before the first step.
type Validation struct {
	Step    int
	Loss    float64 // mean over the labels, or pairs, in nats
	Seconds float64
	// Measures are those of objectives that compare answers, as in [Step].
	Measures []Measure
}

// Answer is what the model answered to a question after a step.
type Answer struct {
	Step     int
	Number   int // of the question, from 1
	Question string
	Text     string
	Seconds  float64
}

// Measure is a named number that an objective reports besides the loss.
type Measure struct {
	Name  string
	Value float64
}
