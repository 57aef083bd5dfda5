package budget_test

import (
	"context"
	"fmt"
	"log"

	"github.com/kvwrap/kvwrap/budget"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A plan is printed, and done if somebody agrees.
func ExamplePlanReclaim() {
	ctx := context.Background()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"10.0.0.1:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	plan, err := budget.PlanReclaim(ctx, cli, budget.ReclaimOptions{KeepRevisions: 10_000})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(plan)
	var answer string
	if fmt.Scanln(&answer); answer != "yes" {
		return
	}
	result, err := plan.Run(ctx)
	fmt.Print(result) // also after an error
	if err != nil {
		log.Fatal(err)
	}
}

// A process asks the members every five minutes, logs what they say, and tells when one
// gets worse or better.
func ExampleMonitor() {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{"10.0.0.1:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer cli.Close()
	monitor, err := budget.NewMonitor(cli, budget.MonitorConfig{
		OnThreshold: func(c budget.HealthCrossing) { fmt.Println(c.From, "->", c.To, c.Member) },
	})
	if err != nil {
		log.Fatal(err)
	}
	monitor.Start()
	defer monitor.Close()
}
