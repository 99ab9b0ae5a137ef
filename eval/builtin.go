package eval

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

//go:embed tasks/*.yaml
var taskFiles embed.FS

// mmluSubjects are the subjects of mmlu by group, in lm-eval's order.
var mmluSubjects = []struct{ group, alias, subjects string }{
	{"stem", "stem", "abstract_algebra anatomy astronomy college_biology college_chemistry " +
		"college_computer_science college_mathematics college_physics computer_security " +
		"conceptual_physics electrical_engineering elementary_mathematics high_school_biology " +
		"high_school_chemistry high_school_computer_science high_school_mathematics " +
		"high_school_physics high_school_statistics machine_learning"},
	{"other", "other", "business_ethics clinical_knowledge college_medicine global_facts " +
		"human_aging management marketing medical_genetics miscellaneous nutrition " +
		"professional_accounting professional_medicine virology"},
	{"social_sciences", "social sciences", "econometrics high_school_geography " +
		"high_school_government_and_politics high_school_macroeconomics " +
		"high_school_microeconomics high_school_psychology human_sexuality " +
		"professional_psychology public_relations security_studies sociology us_foreign_policy"},
	{"humanities", "humanities", "formal_logic high_school_european_history " +
		"high_school_us_history high_school_world_history international_law jurisprudence " +
		"logical_fallacies moral_disputes moral_scenarios philosophy prehistory " +
		"professional_law world_religions"},
}

// Known lists the names of the tasks that need no file, without the subjects of mmlu.
func Known() []string {
	names := []string{"mmlu"}
	files, _ := fs.Glob(taskFiles, "tasks/*.yaml")
	for _, file := range files {
		if name := strings.TrimSuffix(path.Base(file), ".yaml"); name != "mmlu" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// builtin returns the tasks and groups that need no file.
func builtin() (tasks []*config, groups []*group, err error) {
	for _, name := range Known() {
		file := "tasks/" + name + ".yaml"
		data, err := taskFiles.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		if name == "mmlu" {
			subjects, byGroup, err := mmlu(file, string(data))
			if err != nil {
				return nil, nil, err
			}
			tasks, groups = append(tasks, subjects...), append(groups, byGroup...)
			continue
		}
		t, _, err := parseTask(file, data)
		if err != nil {
			return nil, nil, err
		}
		tasks = append(tasks, t)
	}
	return tasks, groups, nil
}

// mmlu returns a task for each subject, a group for each of their kinds and one of all.
func mmlu(file, pattern string) (tasks []*config, groups []*group, err error) {
	accuracy := []groupMetric{{name: "acc", weighted: true}}
	all := &group{name: "mmlu", metrics: accuracy, version: 2}
	for _, kind := range mmluSubjects {
		g := &group{name: "mmlu_" + kind.group, alias: kind.alias, metrics: accuracy, version: 2}
		for _, subject := range strings.Fields(kind.subjects) {
			words := strings.ReplaceAll(subject, "_", " ")
			t, _, err := parseTask(file, fmt.Appendf(nil, "%stask: mmlu_%s\ntask_alias: %s\n"+
				"tag: mmlu_%s_tasks\ndataset_name: %[2]s\ndescription: \"The following are "+
				"multiple choice questions (with answers) about %[5]s.\\n\\n\"\n", pattern, subject,
				subject, kind.group, words))
			if err != nil {
				return nil, nil, err
			}
			tasks = append(tasks, t)
			g.members = append(g.members, t.name)
		}
		groups = append(groups, g)
		all.members = append(all.members, g.name)
	}
	return tasks, append(groups, all), nil
}
