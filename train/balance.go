package train

import (
	"errors"
	"fmt"

	"conquer/model"
)

// balancing returns o with the coefficient of the balancing loss that m's config asks for, unless o
// has one.
func (o Options) balancing(m model.Model) (Options, error) {
	if mixture := model.Active(m) < model.Parameters(m); !mixture {
		if o.RouterLoss != 0 {
			return o, errors.New("--router_aux_loss is for mixtures of experts, and this model " +
				"is none: leave it out")
		}
		return o, nil
	}
	asked, _ := m.Config()["output_router_logits"].(bool)
	if o.RouterLoss != 0 || !asked || o.compares() {
		return o, nil
	}
	r := &model.Reader{Config: m.Config()}
	o.RouterLoss = r.FloatOr("router_aux_loss_coef", 0.001)
	switch {
	case r.Err != nil:
		return o, r.Err
	case o.RouterLoss < 0:
		return o, fmt.Errorf("config.json: router_aux_loss_coef is %g, expected 0 or more",
			o.RouterLoss)
	case o.RouterLoss > 0 && o.Distributed == PP:
		return o, fmt.Errorf("config.json: output_router_logits is true, and the loss that " +
			"balances experts depends on the layers of all stages of --distributed pp: set it to " +
			"false, or choose another strategy")
	}
	return o, nil
}
