// SPDX-License-Identifier: Apache-2.0

// Creates a model of each Modelfile through Ollama's own parser and server, as `ollama create` does, and has it answer a question:
//
//	OLLAMA_HOST=127.0.0.1:11500 OLLAMA_MODELS=DIR ollama_create QUESTION FILE.Modelfile...
//
// It is built within a checkout of ollama/ollama (README.md); llama.cpp's llama-quantize and llama-server lie beside it.
// Exit status: 1 where a file is refused.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/envconfig"
	"github.com/ollama/ollama/parser"
	"github.com/ollama/ollama/server"
)

func refuse(what string, err error) {
	fmt.Fprintln(os.Stderr, what+":", err)
	os.Exit(1)
}

// create makes the model `name` of a Modelfile.
func create(ctx context.Context, client *api.Client, name, file string) error {
	text, err := os.Open(file)
	if err != nil {
		return err
	}
	defer text.Close()
	parsed, err := parser.ParseFile(text)
	if err != nil {
		return err
	}
	request, err := parsed.CreateRequest(filepath.Dir(file))
	if err != nil {
		return err
	}
	request.Model = name
	there := map[string]string{}
	for path, digest := range request.Files {
		weights, err := os.Open(path)
		if err != nil {
			return err
		}
		err = client.CreateBlob(ctx, digest, weights)
		weights.Close()
		if err != nil {
			return err
		}
		there[filepath.Base(path)] = digest
	}
	request.Files = there
	return client.Create(ctx, request, func(api.ProgressResponse) error { return nil })
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: ollama_create QUESTION FILE.Modelfile...")
		os.Exit(2)
	}
	listener, err := net.Listen("tcp", envconfig.Host().Host)
	if err != nil {
		refuse("listen", err)
	}
	go func() { refuse("serve", server.Serve(listener)) }()
	client, err := api.ClientFromEnvironment()
	if err != nil {
		refuse("connect", err)
	}
	ctx := context.Background()
	for tries := 0; client.Heartbeat(ctx) != nil; tries++ {
		if tries == 100 {
			refuse("connect", fmt.Errorf("the server does not answer"))
		}
		time.Sleep(100 * time.Millisecond)
	}
	for i, file := range os.Args[2:] {
		name := fmt.Sprintf("nibble-%d", i)
		if err := create(ctx, client, name, file); err != nil {
			refuse(file, err)
		}
		told, err := client.Show(ctx, &api.ShowRequest{Model: name})
		if err != nil {
			refuse(file, err)
		}
		whole := false
		request := api.ChatRequest{
			Model:    name,
			Messages: []api.Message{{Role: "user", Content: os.Args[1]}},
			Options:  map[string]any{"temperature": 0.0, "repeat_penalty": 1.0, "num_predict": 40},
			Stream:   &whole,
		}
		err = client.Chat(ctx, &request, func(answer api.ChatResponse) error {
			fmt.Printf("%s: %s, %d tokens asked, %q\n", file, told.Details.QuantizationLevel, answer.PromptEvalCount,
				answer.Message.Content)
			return nil
		})
		if err != nil {
			refuse(file, err)
		}
	}
}
