// Package serve answers many requests at once with one model, over HTTP in the form of OpenAI's
// API.
//
// A [Server] is an [http.Handler]. Requests join and leave at every step: their prompts are read
// piece by piece between the steps, and each step decodes one token for all of them. Every sequence
// has its own length in a cache of fixed size, so a request neither waits for longer ones nor is
// padded. On the CPU in float32, a greedy answer has the same tokens and the same log-probabilities
// whether other requests run or not.
package serve

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"conquer/generate"
	"conquer/model"
	"conquer/text/tokenizer"
)

// Options configure a [Server]. Fields that are 0 have the defaults that they name.
type Options struct {
	// Model is the name that requests give and answers repeat; "" means "model".
	Model string
	// Adapters can be named instead of the model. They are read by New.
	Adapters []Adapter
	// LoadAdapters lets clients load and unload adapters from folders of this machine.
	LoadAdapters bool
	// Limits come from [Fit]; the zero value means those for unlimited memory.
	Limits Limits
	// Defaults are the settings of sampling that a request may replace. EOS nil means those of
	// [generate.EOS].
	Defaults generate.Options
	// MaxTokens limits the new tokens of a request; 0 means Limits.Length.
	MaxTokens int
	// MaxBody is the most bytes of a request's body; 0 means 8 MiB.
	MaxBody int64
	// Queue is the most prompts that wait; 0 means 1024. More are refused with status 503.
	Queue int
	// Timeout ends a request, waiting included; 0 means never.
	Timeout time.Duration
	// APIKeys are the keys of which a request for /v1 or /tokenize must bear one; none are needed
	// if there are none.
	APIKeys []string
	// Local answers only requests that name this machine as localhost or by a loopback address. A
	// page elsewhere whose name is made to point to this machine then cannot ask.
	Local bool
	// Origins are the web origins, such as https://example.org, whose pages may send requests; "*"
	// means all. A page that this server serves always may.
	Origins []string
}

// maxChoices is the most choices of a request, over all its prompts.
const maxChoices = 128

// Server answers requests with one model. It implements [http.Handler].
type Server struct {
	model     model.Model
	tokenizer *tokenizer.Tokenizer
	options   Options
	scheduler *scheduler
	metrics   *metrics
	grammars  *grammars
	format    func() *chatFormat
	adapters  *adapters
	handler   http.Handler
	created   int64
}

// New starts a server. m and tok must live until [Server.Shutdown] has returned.
func New(m model.Model, tok *tokenizer.Tokenizer, o Options) (*Server, error) {
	if tok == nil {
		return nil, errors.New("a server needs a tokenizer")
	}
	if o.Limits.Bytes == 0 {
		var err error
		if o.Limits, err = Fit(m, 0, o.Limits); err != nil {
			return nil, err
		}
	}
	if o.Model == "" {
		o.Model = "model"
	}
	if o.MaxTokens == 0 {
		o.MaxTokens = o.Limits.Length
	}
	if o.MaxBody == 0 {
		o.MaxBody = 8 << 20
	}
	if o.Queue == 0 {
		o.Queue = 1024
	}
	if o.Defaults.EOS == nil {
		o.Defaults.EOS = generate.EOS(m, tok)
	}
	s := &Server{model: m, tokenizer: tok, options: o, metrics: newMetrics(),
		grammars: newGrammars(tok, m.Head().Shape[0], nil), created: time.Now().Unix(),
		format: newChatFormat(tok, m.Head().Shape[0])}
	var err error
	if s.scheduler, err = newScheduler(m, o.Limits, o.Queue, s.metrics); err != nil {
		return nil, err
	}
	s.adapters = newAdapters(s.scheduler)
	s.handler, err = s.routes()
	for _, a := range o.Adapters {
		if err == nil {
			err = s.adapters.load(context.Background(), a, o.Model)
		}
	}
	if err != nil {
		s.Shutdown(context.Background())
		return nil, err
	}
	return s, nil
}

// Shutdown refuses new requests, waits for the others until ctx ends, then cancels those that are
// left, and frees the caches.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.scheduler.shutdown(ctx)
	s.adapters.free()
	return err
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// routes makes the handler of all paths.
func (s *Server) routes() (http.Handler, error) {
	open, guarded := http.NewServeMux(), http.NewServeMux()
	guarded.HandleFunc("POST /v1/chat/completions",
		s.timed(s.text(func() request { return new(chatRequest) })))
	guarded.HandleFunc("POST /v1/completions",
		s.timed(s.text(func() request { return new(completionRequest) })))
	guarded.HandleFunc("POST /v1/embeddings", s.timed(s.embeddings))
	guarded.HandleFunc("GET /v1/models", s.models)
	guarded.HandleFunc("GET /v1/models/{id...}", s.oneModel)
	guarded.HandleFunc("POST /tokenize", s.tokenize)
	if s.options.LoadAdapters {
		guarded.HandleFunc("POST /v1/load_lora_adapter", s.loadAdapter)
		guarded.HandleFunc("POST /v1/unload_lora_adapter", s.unloadAdapter)
	}
	for _, path := range []string{"/v1/", "/tokenize"} {
		open.Handle(path, s.authorized(located(guarded)))
	}
	open.HandleFunc("GET /{$}", page)
	open.HandleFunc("GET /page/{file}", page)
	open.HandleFunc("GET /health", s.health)
	open.Handle("GET /metrics", s.metrics.handler())
	handler, err := s.crossOrigin(s.counted(located(open)))
	if err == nil && s.options.Local {
		handler = local(handler)
	}
	return handler, err
}

// local refuses requests whose Host is not this machine's.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		if !strings.EqualFold(host, "localhost") && (ip == nil || !ip.IsLoopback()) {
			fail(w, &problem{status: http.StatusForbidden, kind: invalidRequest,
				message: fmt.Sprintf("the request names the host %.80q, and this server answers "+
					"for localhost only", r.Host)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// located answers in OpenAI's form where a mux has no handler.
func located(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := *r
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			probe.Method = method
			if _, pattern := mux.Handler(&probe); pattern != "" {
				w.Header().Set("Allow", method)
				fail(w, &problem{status: http.StatusMethodNotAllowed, kind: invalidRequest,
					message: fmt.Sprintf("%s %.80s is not allowed: use %s", r.Method, r.URL.Path,
						method)})
				return
			}
		}
		fail(w, &problem{status: http.StatusNotFound, kind: invalidRequest,
			message: fmt.Sprintf("there is nothing at %.80q", r.URL.Path)})
	})
}

// timed applies Options.Timeout.
func (s *Server) timed(next http.HandlerFunc) http.HandlerFunc {
	if s.options.Timeout == 0 {
		return next
	}
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), s.options.Timeout)
		defer cancel()
		next(w, r.WithContext(ctx))
	}
}

// authorized asks for one of the keys. Without keys it ignores what a request bears.
func (s *Server) authorized(next http.Handler) http.Handler {
	if len(s.options.APIKeys) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		known := 0
		for _, k := range s.options.APIKeys {
			known |= subtle.ConstantTimeCompare([]byte(k), []byte(key))
		}
		if !bearer || known == 0 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			fail(w, &problem{status: http.StatusUnauthorized, kind: invalidRequest,
				code: "invalid_api_key", message: "the API key is missing or wrong: send it as " +
					"Authorization: Bearer KEY"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// crossOrigin refuses requests of pages of other origins, and answers what browsers ask before such
// requests.
func (s *Server) crossOrigin(next http.Handler) (http.Handler, error) {
	protection := http.NewCrossOriginProtection()
	all := false
	for _, origin := range s.options.Origins {
		if origin == "*" {
			all = true
		} else if err := protection.AddTrustedOrigin(origin); err != nil {
			return nil, err
		}
	}
	trusted := func(origin string) bool {
		for _, o := range s.options.Origins {
			if o == "*" || o == origin {
				return true
			}
		}
		return false
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if origin := r.Header.Get("Origin"); origin != "" && trusted(origin) {
			h := w.Header()
			h.Set("Access-Control-Allow-Origin", origin)
			h.Add("Vary", "Origin")
			if r.Method == http.MethodOptions {
				h.Set("Access-Control-Allow-Methods", "GET, POST")
				h.Set("Access-Control-Allow-Headers",
					r.Header.Get("Access-Control-Request-Headers"))
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		if err := protection.Check(r); err != nil && !all {
			fail(w, &problem{status: http.StatusForbidden, kind: invalidRequest,
				message: fmt.Sprintf("pages of %.80q may not send requests to this server",
					r.Header.Get("Origin"))})
			return
		}
		next.ServeHTTP(w, r)
	}), nil
}

// health tells that the server runs.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if s.scheduler.ending() {
		fail(w, errStopping)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"status": "ok", "model": s.options.Model})
}

// problemOf finds what a client is told about an error.
func problemOf(err error) *problem {
	var p *problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, errQueueFull), errors.Is(err, errStopping):
		return &problem{status: http.StatusServiceUnavailable, kind: serverError,
			message: err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return &problem{status: http.StatusGatewayTimeout, kind: serverError, final: true,
			message: "the request took longer than the server allows"}
	case errors.Is(err, context.Canceled):
		return &problem{status: 499, kind: serverError, final: true,
			message: "the request was cancelled"}
	}
	return &problem{status: http.StatusInternalServerError, kind: serverError, final: true,
		message: err.Error()}
}
