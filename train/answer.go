package train

import "conquer/train/report"

// Answer is what the model answered to a question after a step.
type Answer = report.Answer

// AnswerListener is a [Listener] that also receives answers. The first error that it returns ends
// the run.
type AnswerListener interface {
	Listener
	Answer(Answer) error
}

// Ask calls ask on rank 0 while that process holds all weights (see [Trainer.Whole]), and passes
// the answers, as those after the last step, to that process's listeners.
func (t *Trainer) Ask(ask func() ([]Answer, error)) error {
	return t.Whole(func() error {
		answers, err := ask()
		if err != nil {
			return err
		}
		for _, a := range answers {
			a.Step = t.step
			err := t.tell(func(l Listener) error {
				if l, ok := l.(AnswerListener); ok {
					return l.Answer(a)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// asks reports whether questions are due after the last step. begun is the step at which Run began:
// answers before the first and after the last step are the caller's.
func (t *Trainer) asks(begun int) bool {
	o := t.options
	return o.AskSteps > 0 && t.step > begun && t.step < o.Steps && t.step%o.AskSteps == 0
}
