package kvwrap

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pages returns the files of documentation.
func pages(t *testing.T) (all []string) {
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".md") {
			all = append(all, path)
		}
		return err
	}))
	require.Greater(t, len(all), 20)
	return all
}

// functions returns the tests, fuzz targets, benchmarks and examples of each package, by its
// directory.
func functions(t *testing.T) map[string][]string {
	all := map[string][]string{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w*)\(`)
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(source), -1) {
			all[filepath.Dir(path)] = append(all[filepath.Dir(path)], m[1])
		}
		return err
	}))
	return all
}

// TestClaims: docs/claims.md names tests that there are, and every page that gives a command
// of go's, for a figure or otherwise, names packages, tests, benchmarks and flags that there are.
func TestClaims(t *testing.T) {
	there := functions(t)
	byPackage := map[string][]string{}
	for dir, names := range there {
		name := filepath.Base(dir)
		if dir == "." {
			name = "kvwrap"
		}
		byPackage[name] = append(byPackage[name], names...)
	}
	claims, err := os.ReadFile("docs/claims.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`([a-z]+)\\.((?:Test|Fuzz|Benchmark|Example)\\w+)`").FindAllStringSubmatch(string(claims), -1)
	require.Greater(t, len(named), 100)
	for _, m := range named {
		require.Contains(t, byPackage[m[1]], m[2], "docs/claims.md names %s", m[0])
	}
	for line := range strings.SplitSeq(string(claims), "\n") {
		if columns := strings.Split(line, "|"); len(columns) == 4 && columns[1] != "---" && columns[1] != " claim " {
			require.Regexp(t, "`", columns[2], "docs/claims.md: nothing shows %q", columns[1])
		}
	}

	// Other pages name tests alone.
	every := strings.Builder{}
	for _, names := range there {
		every.WriteString(" " + strings.Join(names, " ") + " ")
	}
	alone := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)")
	command := regexp.MustCompile(`go test ([^\n` + "`" + `]+)`)
	word := regexp.MustCompile(`'[^']*'|\S+`)
	commands := 0
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range alone.FindAllStringSubmatch(string(text), -1) {
			require.Contains(t, every.String(), " "+m[1]+" ", "%s names a test that there is not", page)
		}
		for _, m := range command.FindAllStringSubmatch(string(text), -1) {
			args := word.FindAllString(strings.TrimRight(m[1], "\\"), -1)
			packages, patterns := []string{}, [][2]string{}
			for i := 0; i < len(args); i++ {
				arg := strings.TrimRight(strings.Trim(args[i], "'"), ").,;")
				switch value := ""; {
				case arg == "-run", arg == "-bench", arg == "-fuzz", arg == "-skip":
					i++
					value = strings.Trim(args[i], "'")
					patterns = append(patterns, [2]string{arg, value})
				case arg == "." || strings.HasPrefix(arg, "./"):
					packages = append(packages, filepath.Clean(arg))
				case strings.HasPrefix(arg, "-") && strings.Contains(arg, "."):
					name, _, _ := strings.Cut(arg[1:], "=")
					require.True(t, name == "rapid.checks" || defined(t, name), "%s: %s: there is no flag %s", page, m[0], arg)
				}
			}
			if len(packages) == 0 {
				packages = []string{"."}
			}
			var names []string
			for dir, all := range there {
				for _, p := range packages {
					if dir == p || p == "..." || strings.HasSuffix(p, "/...") && strings.HasPrefix(dir, strings.TrimSuffix(p, "...")) {
						names = append(names, all...)
					}
				}
			}
			for _, p := range patterns {
				if p[1] == "xxx" || p[1] == "^$" || p[1] == "Name" { // none, and any
					continue
				}
				for alternative := range strings.SplitSeq(p[1], "|") {
					top, _, _ := strings.Cut(alternative, "/")
					re, err := regexp.Compile(top)
					require.NoError(t, err)
					found := false
					for _, n := range names {
						kind := map[string]string{"-bench": "Benchmark", "-fuzz": "Fuzz"}[p[0]]
						found = found || strings.HasPrefix(n, kind) && re.MatchString(n)
					}
					require.True(t, found, "%s: %s: nothing in %v is called %s", page, m[0], packages, alternative)
				}
				commands++
			}
		}
	}
	require.Greater(t, commands, 40)
}

// defined reports whether a test has a flag of that name.
func defined(t *testing.T, name string) (ok bool) {
	require.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || ok || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		ok = strings.Contains(string(source), `"`+name+`"`)
		return err
	}))
	return ok
}

// TestLinks: what a page links to within the repository is there, down to the heading.
func TestLinks(t *testing.T) {
	fence := regexp.MustCompile("(?s)\n```.*?\n```")
	heading := regexp.MustCompile(`(?m)^#+ (.+)$`)
	code := regexp.MustCompile("`[^`\n]*`")
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anchors := func(file string) map[string]bool {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		all := map[string]bool{}
		for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(string(text), ""), -1) {
			slug := strings.ToLower(strings.TrimSpace(m[1]))
			slug = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(slug, "")
			all[strings.ReplaceAll(slug, " ", "-")] = true
		}
		return all
	}
	links := 0
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(fence.ReplaceAllString(string(text), ""), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			_, err := os.Stat(target)
			require.NoError(t, err, "%s links to %s", page, m[1])
			if anchor != "" {
				require.Contains(t, anchors(target), anchor, "%s links to %s", page, m[1])
			}
			links++
		}
	}
	require.Greater(t, links, 50)
}

// TestEveryEntryPointHasAnExample: each exported function of the packages for users, and each
// method of their KV, Config, Monitor and Meter, is called in an example of its package.
func TestEveryEntryPointHasAnExample(t *testing.T) {
	receivers := map[string]bool{"": true, "KV": true, "Config": true, "Monitor": true, "Meter": true, "ReclaimPlan": true, "Load": true, "Report": true, "Traffic": true}
	whatItIs := map[string]bool{"String": true, "Validate": true, "MarshalJSON": true, "UnmarshalJSON": true}
	entries := 0
	for _, dir := range []string{".", "chunker", "coalesce", "budget", "shaper", "shaper/kvprom", "shaper/kvotel"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		var examples strings.Builder
		exported := map[string]bool{}
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			require.NoError(t, err)
			if strings.HasSuffix(file, "_test.go") {
				if strings.Contains(file, "example") {
					source, err := os.ReadFile(file)
					require.NoError(t, err)
					examples.Write(source)
				}
				continue
			}
			for _, d := range parsed.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok || !f.Name.IsExported() || whatItIs[f.Name.Name] {
					continue
				}
				receiver := ""
				if f.Recv != nil {
					typ := f.Recv.List[0].Type
					if star, ok := typ.(*ast.StarExpr); ok {
						typ = star.X
					}
					receiver = typ.(*ast.Ident).Name
				}
				if receivers[receiver] {
					exported[f.Name.Name] = true
				}
			}
		}
		for name := range exported {
			called, err := regexp.MatchString(`\.`+name+`\(`, examples.String())
			require.NoError(t, err)
			assert.True(t, called, "no example in %s calls %s", dir, name)
			entries++
		}
	}
	require.Greater(t, entries, 40)
}

// TestEachDocNamesItsFiles: who reads a package's doc.go learns what each file of it is for.
func TestEachDocNamesItsFiles(t *testing.T) {
	docs, err := filepath.Glob("*/doc.go")
	require.NoError(t, err)
	internal, err := filepath.Glob("internal/*/doc.go")
	require.NoError(t, err)
	docs = append(docs, internal...)
	require.GreaterOrEqual(t, len(docs), 8)
	for _, doc := range append(docs, "doc.go") {
		text, err := os.ReadFile(doc)
		require.NoError(t, err)
		files, err := filepath.Glob(filepath.Join(filepath.Dir(doc), "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if name := filepath.Base(file); name != "doc.go" && !strings.HasSuffix(name, "_test.go") {
				assert.Contains(t, string(text), name, "%s does not say what %s is for", doc, name)
			}
		}
	}
}
