package train

// Helpers for the tests of package train_test.
type (
	RunSpec = runSpec
	Result  = result
)

var (
	NoLeaks      = noLeaks
	PlannedModel = plannedModel
	PlannedSpec  = plannedSpec
	RunOnce      = train
	Samples      = samples
	SkipWorlds   = skipWorlds
	Succeed      = succeed
)
