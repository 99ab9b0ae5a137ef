package eval

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Suite is a selection of tasks and groups of tasks.
type Suite struct {
	tasks  []*config
	groups []*group // members before the groups that hold them
}

// Load selects tasks by name: a known task, group or tag, or the path of a YAML file that holds a
// task or a group of lm-eval's form. The members of a group in a file are found among the files
// given and the known tasks.
func Load(names []string) (*Suite, error) {
	l := &loader{}
	tasks, groups, err := builtin()
	if err != nil {
		return nil, err
	}
	l.tasks, l.groups = tasks, groups
	var wanted []string
	for _, name := range names {
		if !isTaskFile(name) {
			wanted = append(wanted, name)
			continue
		}
		loaded, err := l.read(name)
		if err != nil {
			return nil, err
		}
		wanted = append(wanted, loaded)
	}
	s := &Suite{}
	for _, name := range wanted {
		if err := l.add(s, name, nil); err != nil {
			return nil, err
		}
	}
	if len(s.tasks) == 0 {
		return nil, fmt.Errorf("no task is named; known tasks are %s", strings.Join(Known(), ", "))
	}
	return s, nil
}

func isTaskFile(name string) bool {
	ext := strings.ToLower(filepath.Ext(name))
	return ext == ".yaml" || ext == ".yml" || strings.ContainsRune(name, filepath.Separator)
}

// Names lists the names of the tasks.
func (s *Suite) Names() (names []string) {
	for _, t := range s.tasks {
		names = append(names, t.name)
	}
	return names
}

// loader holds what can be selected.
type loader struct {
	tasks  []*config
	groups []*group
}

// read reads a file and returns the name of what it holds, which replaces what had that name.
func (l *loader) read(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	t, g, err := parseTask(file, data)
	if err != nil {
		return "", err
	}
	if t != nil {
		l.tasks = slices.DeleteFunc(l.tasks, func(o *config) bool { return o.name == t.name })
		l.tasks = append(l.tasks, t)
		return t.name, nil
	}
	for i, member := range g.members {
		if !isTaskFile(member) {
			continue
		}
		if !filepath.IsAbs(member) {
			member = filepath.Join(filepath.Dir(file), member)
		}
		if member == file {
			return "", fmt.Errorf("%s: the group holds itself", file)
		}
		if g.members[i], err = l.read(member); err != nil {
			return "", err
		}
	}
	l.groups = slices.DeleteFunc(l.groups, func(o *group) bool { return o.name == g.name })
	l.groups = append(l.groups, g)
	return g.name, nil
}

// add selects a task, a tag or a group and its members.
func (l *loader) add(s *Suite, name string, inside []string) error {
	if slices.Contains(inside, name) {
		return fmt.Errorf("the group %s holds itself", name)
	}
	for _, t := range l.tasks {
		if t.name == name {
			if !slices.Contains(s.tasks, t) {
				s.tasks = append(s.tasks, t)
			}
			return nil
		}
	}
	for _, g := range l.groups {
		if g.name != name {
			continue
		}
		if slices.Contains(s.groups, g) {
			return nil
		}
		var members []string
		for _, member := range g.members {
			if tagged := l.tagged(member); tagged != nil {
				members = append(members, tagged...)
			} else {
				members = append(members, member)
			}
		}
		g.members = members
		for _, member := range members {
			if err := l.add(s, member, append(inside, name)); err != nil {
				return err
			}
		}
		s.groups = append(s.groups, g)
		return nil
	}
	if tagged := l.tagged(name); tagged != nil {
		for _, member := range tagged {
			if err := l.add(s, member, inside); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("there is no task %.60q: known tasks are %s, the subjects of mmlu such as "+
		"mmlu_anatomy, and YAML files", name, strings.Join(Known(), ", "))
}

// tagged lists the tasks that have a tag.
func (l *loader) tagged(tag string) (names []string) {
	for _, t := range l.tasks {
		if slices.Contains(t.tags, tag) {
			names = append(names, t.name)
		}
	}
	return names
}
