package nn

import (
	"reflect"
	"strconv"
	"strings"
)

// Component is one tensor of a checkpoint: rows [Start, Start+Rows) of a parameter.
type Component struct {
	Name        string
	Param       *Param
	Start, Rows int
}

// Shape returns the component's shape in checkpoints.
func (p Component) Shape() []int {
	if n := p.Param.Stack; n > 0 {
		return append([]int{n, p.Rows / n}, p.Param.Shape[1:]...)
	}
	return append([]int{p.Rows}, p.Param.Shape[1:]...)
}

// Whole reports whether the component is all of its parameter.
func (p Component) Whole() bool { return p.Rows == p.Param.Shape[0] }

// Walk visits the components of every parameter below root, a pointer to a struct, in declaration
// order. A field is visited if it has a `weight` tag, which is the name that it contributes. "a+b"
// names the components of a fused layer, elements of a slice are numbered, and a nil pointer is a
// weight that this model does not have. A [Parent] names its inner layers itself.
func Walk(root any, visit func(Component)) { walk(reflect.ValueOf(root), []string{""}, visit) }

var paramType = reflect.TypeFor[*Param]()

// Parent is a layer that names its inner layers itself, in place of struct tags: for names that
// depend on the model.
type Parent interface {
	// Children lists the inner layers. A layer is a pointer to a struct, a slice of them, or a nil
	// pointer.
	Children() []Child
}

// Child is an inner layer and the name that it contributes.
type Child struct {
	Name  string
	Layer any
}

// children calls visit for the named fields of a layer.
func children(v reflect.Value, visit func(name string, child reflect.Value)) {
	if parent, ok := v.Interface().(Parent); ok {
		for _, c := range parent.Children() {
			visit(c.Name, reflect.ValueOf(c.Layer))
		}
		return
	}
	switch v = reflect.Indirect(v); v.Kind() {
	case reflect.Slice:
		for i := range v.Len() {
			visit(strconv.Itoa(i), v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if tag, ok := v.Type().Field(i).Tag.Lookup("weight"); ok {
				visit(tag, v.Field(i))
			}
		}
	}
}

func walk(v reflect.Value, names []string, visit func(Component)) {
	if v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if !v.IsValid() || (v.Kind() == reflect.Pointer && v.IsNil()) {
		return
	}
	if v.Type() == paramType {
		param := v.Interface().(*Param)
		start := 0
		for i, rows := range param.Rows {
			visit(Component{Name: names[min(i, len(names)-1)], Param: param, Start: start,
				Rows: rows})
			start += rows
		}
		return
	}
	children(v, func(name string, child reflect.Value) { walk(child, join(names, name), visit) })
}

// join appends a tag to every prefix. A fused tag gives one name for each of its components.
func join(prefixes []string, tag string) []string {
	var names []string
	for _, prefix := range prefixes {
		for part := range strings.SplitSeq(tag, "+") {
			if prefix != "" && part != "" {
				part = "." + part
			}
			names = append(names, prefix+part)
		}
	}
	return names
}

// Params lists the parameters below root, each once.
func Params(root any) []*Param {
	var params []*Param
	seen := map[*Param]bool{}
	Walk(root, func(p Component) {
		if !seen[p.Param] {
			seen[p.Param] = true
			params = append(params, p.Param)
		}
	})
	return params
}

// Linears visits every Linear below root with the names of its components, without .weight. The
// matrices of a stack a.b are called a.0.b, a.1.b and so on.
func Linears(root any, visit func(names []string, l *Linear)) {
	byWeight := map[*Param][]string{}
	Walk(root, func(p Component) {
		byWeight[p.Param] = append(byWeight[p.Param], strings.TrimSuffix(p.Name, ".weight"))
	})
	Layers(root, func(_ string, layer any) {
		if l, ok := layer.(*Linear); ok {
			names := byWeight[l.Weight]
			if l.Weight.Stack > 0 {
				names = stackedNames(names[0], l.Weight.Stack)
			}
			visit(names, l)
		}
	})
}

// stackedNames gives the matrices of a stack names of their own: a.0.b, a.1.b, … of a.b.
func stackedNames(name string, n int) []string {
	names := make([]string, n)
	at := strings.LastIndexByte(name, '.') + 1
	for i := range names {
		names[i] = name[:at] + strconv.Itoa(i) + "." + name[at:]
	}
	return names
}

// Layers visits every layer below root and root itself, by name, outer layers first: the pointers
// to structs that Walk passes through.
func Layers(root any, visit func(name string, layer any)) {
	layers(reflect.ValueOf(root), "",
		visit)
}

func layers(v reflect.Value, name string, visit func(name string, layer any)) {
	if v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if !v.IsValid() || (v.Kind() == reflect.Pointer && v.IsNil()) || v.Type() == paramType {
		return
	}
	if v.Kind() == reflect.Pointer {
		visit(name, v.Interface())
	}
	children(v, func(tag string, child reflect.Value) {
		layers(child, join([]string{name}, tag)[0],
			visit)
	})
}
