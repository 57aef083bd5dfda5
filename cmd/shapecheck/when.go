package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kvwrap/kvwrap/budget"
	"github.com/kvwrap/kvwrap/internal/size"
)

// rule is a condition on a member, as in "bloat>2 && free>100MiB".
//
//	rule       = all { "||" all }
//	all        = comparison { "&&" comparison }
//	comparison = name operator value | "(" rule ")"
type rule struct {
	text  string
	holds func(budget.HealthMember) bool
}

// ruleFigures are what a rule may compare.
var ruleFigures = map[string]func(budget.HealthMember) float64{
	"bloat":     func(m budget.HealthMember) float64 { return m.Bloat },
	"free":      func(m budget.HealthMember) float64 { return float64(m.Free()) },
	"size":      func(m budget.HealthMember) float64 { return float64(m.DbSize) },
	"in-use":    func(m budget.HealthMember) float64 { return float64(m.DbSizeInUse) },
	"quota-use": func(m budget.HealthMember) float64 { return m.QuotaUse },
}

// ruleNames says what there is, in help and errors.
const ruleNames = "bloat, free, size, in-use or quota-use"

var ruleOperators = map[string]func(a, b float64) bool{
	">":  func(a, b float64) bool { return a > b },
	">=": func(a, b float64) bool { return a >= b },
	"<":  func(a, b float64) bool { return a < b },
	"<=": func(a, b float64) bool { return a <= b },
}

var ruleWord = regexp.MustCompile(`^\s*(\|\||&&|[()]|[<>]=?|[a-z][a-z-]*|[0-9.]+ ?(?:[KMGT]i?B|B|%)?)`)

func parseRule(text string) (*rule, error) {
	p := &ruleParser{text: text}
	rest := strings.TrimSpace(text)
	for rest != "" {
		found := ruleWord.FindStringSubmatch(rest)
		if found == nil {
			return nil, p.wrong("%q is neither a name, a value, nor one of > >= < <= && || ( )", rest)
		}
		p.words = append(p.words, strings.TrimSpace(found[1]))
		rest = strings.TrimSpace(rest[len(found[0]):])
	}
	holds, err := p.any()
	if err == nil && len(p.words) > 0 {
		err = p.wrong("%q is too much", p.words[0])
	}
	return &rule{text, holds}, err
}

type ruleParser struct {
	text  string
	words []string // that are left
}

func (p *ruleParser) wrong(format string, args ...any) error {
	return fmt.Errorf(`--when %q: %s: write it as in "bloat>2 && free>100MiB", of %s`, p.text, fmt.Sprintf(format, args...), ruleNames)
}

// next takes a word, "" at the end.
func (p *ruleParser) next() (word string) {
	if len(p.words) > 0 {
		word, p.words = p.words[0], p.words[1:]
	}
	return word
}

func (p *ruleParser) joined(by string, part func() (func(budget.HealthMember) bool, error)) (parts []func(budget.HealthMember) bool, err error) {
	for {
		one, err := part()
		if err != nil {
			return nil, err
		}
		parts = append(parts, one)
		if len(p.words) == 0 || p.words[0] != by {
			return parts, nil
		}
		p.next()
	}
}

func (p *ruleParser) any() (func(budget.HealthMember) bool, error) {
	parts, err := p.joined("||", p.all)
	return func(m budget.HealthMember) bool {
		return slices.ContainsFunc(parts, func(part func(budget.HealthMember) bool) bool { return part(m) })
	}, err
}

func (p *ruleParser) all() (func(budget.HealthMember) bool, error) {
	parts, err := p.joined("&&", p.comparison)
	return func(m budget.HealthMember) bool {
		return !slices.ContainsFunc(parts, func(part func(budget.HealthMember) bool) bool { return !part(m) })
	}, err
}

func (p *ruleParser) comparison() (func(budget.HealthMember) bool, error) {
	name := p.next()
	if name == "(" {
		inner, err := p.any()
		if err == nil && p.next() != ")" {
			err = p.wrong("a ) is missing")
		}
		return inner, err
	}
	figure, ok := ruleFigures[name]
	if !ok {
		return nil, p.wrong("%q is no figure", name)
	}
	operator := p.next()
	compare, ok := ruleOperators[operator]
	if !ok {
		return nil, p.wrong("%q is no operator", operator)
	}
	value := p.next()
	bound, err := ruleValue(name, value)
	if err != nil {
		return nil, p.wrong("%v", err)
	}
	return func(m budget.HealthMember) bool { return compare(figure(m), bound) }, nil
}

// ruleValue reads a value of the kind that the figure has.
func ruleValue(name, value string) (float64, error) {
	share, percent := strings.CutSuffix(value, "%")
	switch {
	case name == "quota-use" && percent:
		v, err := strconv.ParseFloat(strings.TrimSpace(share), 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no number", value)
		}
		return v / 100, nil
	case name == "quota-use" || name == "bloat":
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no number", value)
		}
		if name == "quota-use" && v > 1 { // which no member has for long
			return 0, fmt.Errorf("%s is %v %% of the quota: for %s %% write %s%% or %v", value, 100*v, value, value, v/100)
		}
		return v, nil
	}
	s, err := size.Parse(value)
	return float64(s), err
}

// meets returns the first member for which one of the rules holds. Of one that does not
// answer nothing is known.
func meets(h budget.Health, rules []*rule) (m budget.HealthMember, r *rule) {
	for _, m := range h.Members {
		for _, r := range rules {
			if m.Error == "" && r.holds(m) {
				return m, r
			}
		}
	}
	return m, nil
}
