package serve

import (
	"net/http"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what /metrics reports.
type metrics struct {
	registry                *prometheus.Registry
	requests                *prometheus.CounterVec
	waiting, running        prometheus.Gauge
	promptTokens, newTokens prometheus.Counter
	wait, firstToken, step  prometheus.Histogram
	prefixTokens            prometheus.Counter
	prefixBytes             prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "conquer", Name: name, Help: help})
		m.registry.MustRegister(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "conquer", Name: name,
			Help: help})
		m.registry.MustRegister(c)
		return c
	}
	seconds := func(name, help string, least float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "conquer", Name: name,
			Help: help, Buckets: prometheus.ExponentialBuckets(least, 2, 16)})
		m.registry.MustRegister(h)
		return h
	}
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "conquer",
		Name: "requests_total", Help: "Requests by path and status."}, []string{"path", "status"})
	m.registry.MustRegister(m.requests)
	m.waiting = gauge("waiting", "Prompts that wait to be read.")
	m.running = gauge("running", "Sequences that are decoded.")
	m.promptTokens = counter("prompt_tokens_total", "Tokens of prompts that were read.")
	m.newTokens = counter("new_tokens_total", "Tokens that were made.")
	m.prefixTokens = counter("prefix_tokens_total",
		"Tokens of prompts that were known from earlier ones and not read again.")
	m.prefixBytes = gauge("prefix_bytes", "Memory of what is kept of earlier prompts.")
	m.wait = seconds("wait_seconds", "Time from arrival until a prompt is read.", 0.001)
	m.firstToken = seconds("first_token_seconds", "Time from arrival to the first token.", 0.001)
	m.step = seconds("step_seconds", "Time of a decoding step.", 0.0005)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

var countedPaths = []string{"/", "/v1/chat/completions", "/v1/completions", "/v1/embeddings",
	"/v1/models", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/health",
	"/metrics"}

// counted counts requests.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorded := &recorder{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			path := r.URL.Path
			if !slices.Contains(countedPaths, path) { // a client could invent any number of them
				path = "other"
			}
			s.metrics.requests.WithLabelValues(path, strconv.Itoa(recorded.status)).Inc()
		}()
		next.ServeHTTP(recorded, r)
	})
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements [http.ResponseWriter].
func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// Unwrap lets [http.ResponseController] flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
