// Command agent calls a node through the client stubs that Go's own tools generate from the published definitions.
//
// It reads one JSON object a line and writes one a line, so that one script can tell the same story through clients in
// several languages: {"id": 1, "method": "Time", "request": {}} is answered by {"id": 1, "response": {…}}; a method
// with a stream sends {"id": 1, "message": {…}} each time and {"id": 1, "end": true} at last. A call that ends with a
// status other than OK is answered by {"id": 1, "status": {"code": "…", "message": "…"}}. {"cancel": 1} gives a call up.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"perun.invalid/interop/pb"
)

type command struct {
	ID      int             `json:"id"`
	Method  string          `json:"method"`
	Request json.RawMessage `json:"request"`
	Cancel  int             `json:"cancel"`
}

type agent struct {
	stub    reflect.Value
	writing sync.Mutex
	calls   sync.Map
}

func (a *agent) say(line map[string]any) {
	a.writing.Lock()
	defer a.writing.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		os.Exit(1)
	}
}

func (a *agent) fail(id int, err error) {
	reason := status.Convert(err)
	a.say(map[string]any{"id": id, "status": map[string]string{"code": reason.Code().String(), "message": reason.Message()}})
}

func shown(message any) json.RawMessage {
	text, err := protojson.Marshal(message.(proto.Message))
	if err != nil {
		panic(err)
	}
	return text
}

func failure(value reflect.Value) error {
	if value.IsNil() {
		return nil
	}
	return value.Interface().(error)
}

func (a *agent) call(ctx context.Context, asked command) {
	method := a.stub.MethodByName(asked.Method)
	if !method.IsValid() {
		a.fail(asked.ID, fmt.Errorf("the stub has no method %q", asked.Method))
		return
	}
	request := reflect.New(method.Type().In(1).Elem())
	if err := protojson.Unmarshal(asked.Request, request.Interface().(proto.Message)); err != nil {
		a.fail(asked.ID, err)
		return
	}
	results := method.Call([]reflect.Value{reflect.ValueOf(ctx), request})
	if err := failure(results[1]); err != nil {
		a.fail(asked.ID, err)
		return
	}
	if _, single := results[0].Interface().(proto.Message); single {
		a.say(map[string]any{"id": asked.ID, "response": shown(results[0].Interface())})
		return
	}
	for {
		received := results[0].MethodByName("Recv").Call(nil)
		switch err := failure(received[1]); err {
		case nil:
			a.say(map[string]any{"id": asked.ID, "message": shown(received[0].Interface())})
		case io.EOF:
			a.say(map[string]any{"id": asked.ID, "end": true})
			return
		default:
			a.fail(asked.ID, err)
			return
		}
	}
}

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	a := &agent{stub: reflect.ValueOf(pb.NewPayment_APIClient(connection))}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked command
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if asked.Cancel != 0 {
			if cancel, known := a.calls.Load(asked.Cancel); known {
				cancel.(context.CancelFunc)()
			}
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		a.calls.Store(asked.ID, cancel)
		go func() {
			defer cancel()
			a.call(ctx, asked)
		}()
	}
}
