// Renders conversations (JSON lines on stdin) by a Modelfile, with Ollama's own parser and templates.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/parser"
	"github.com/ollama/ollama/template"
)

func main() {
	file, err := os.Open(os.Args[1])
	check(err)
	modelfile, err := parser.ParseFile(file)
	check(err)
	var source string
	stops := []string{}
	for _, command := range modelfile.Commands {
		switch command.Name {
		case "template":
			source = command.Args
		case "stop":
			stops = append(stops, command.Args)
		}
	}
	parsed, err := template.Parse(source)
	check(err)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var messages []api.Message
		check(json.Unmarshal(lines.Bytes(), &messages))
		var prompt textWriter
		check(parsed.Execute(&prompt, template.Values{Messages: messages}))
		out, err := json.Marshal(map[string]any{"prompt": string(prompt), "stops": stops})
		check(err)
		fmt.Println(string(out))
	}
}

type textWriter []byte

func (w *textWriter) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
