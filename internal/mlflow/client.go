package mlflow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxAnswer is the largest answer of a server that is read, in bytes.
const maxAnswer = 1 << 20

// requestTime is how long one request may take.
var requestTime = 10 * time.Second // tests raise it

// client makes requests.
type client struct {
	base                  *url.URL // without user and password
	user, password, token string
	http                  *http.Client
}

func newClient(o Options) (*client, error) {
	u, err := parse(o.URI)
	if err != nil {
		return nil, err
	}
	c := &client{user: o.User, password: o.Password, token: o.Token}
	if u.User != nil {
		c.user = u.User.Username()
		c.password, _ = u.User.Password()
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	c.base = u
	c.http = &http.Client{
		Timeout: requestTime,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // another address must not get the password
		},
	}
	return c, nil
}

// refusal is the answer of a server that did not do what was asked.
type refusal struct {
	status  int
	Code    string `json:"error_code"`
	Message string `json:"message"`
}

func (r *refusal) Error() string {
	text := fmt.Sprintf("it answers %d %s", r.status, http.StatusText(r.status))
	if r.Code != "" {
		text += fmt.Sprintf(" (%s: %s)", r.Code, r.Message)
	}
	return text
}

// permanent reports whether the same request would be refused again.
func (r *refusal) permanent() bool {
	switch r.status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// missing reports whether err says that the server does not have what was named.
func missing(err error) bool {
	var r *refusal
	return errors.As(err, &r) && (r.Code == "RESOURCE_DOES_NOT_EXIST" ||
		r.status == http.StatusNotFound)
}

func (c *client) post(ctx context.Context, what string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPost, what, bytes.NewReader(text), answer)
}

// do makes a request and reads its answer, a JSON object, unless answer is nil.
func (c *client) do(ctx context.Context, method, what string, body io.Reader, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method,
		c.base.String()+"/api/2.0/mlflow/"+what, body)
	if err != nil {
		return errors.New("its address cannot be used")
	}
	request.Header.Set("Content-Type", "application/json")
	switch {
	case c.user != "" || c.password != "":
		request.SetBasicAuth(c.user, c.password)
	case c.token != "":
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // without the address, which the message names
		}
		return errors.New(c.redacted(err.Error()))
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return errors.New(c.redacted(err.Error()))
	}
	if response.StatusCode != http.StatusOK {
		r := &refusal{status: response.StatusCode}
		json.Unmarshal(text, r) // a proxy may answer with something else
		r.Code, r.Message = c.redacted(cut(r.Code, 100)), c.redacted(cut(r.Message, 300))
		return r
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("what answers is not an MLflow server: %w", err)
	}
	return nil
}

// redacted returns a message without the password and the token, should a server repeat them.
func (c *client) redacted(text string) string {
	for _, secret := range []string{c.password, c.token} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "***")
		}
	}
	return text
}

// experiment returns the id of an experiment, which it makes if there is none.
func (c *client) experiment(ctx context.Context, name string) (string, error) {
	var found struct {
		Experiment struct {
			ID string `json:"experiment_id"`
		} `json:"experiment"`
	}
	err := c.do(ctx, http.MethodGet,
		"experiments/get-by-name?experiment_name="+url.QueryEscape(name), nil, &found)
	if err == nil && found.Experiment.ID != "" {
		return found.Experiment.ID, nil
	} else if err != nil && !missing(err) {
		return "", err
	}
	var made struct {
		ID string `json:"experiment_id"`
	}
	err = c.post(ctx, "experiments/create", map[string]string{"name": name}, &made)
	if err == nil && made.ID == "" {
		err = errors.New("what answers is not an MLflow server: it named no experiment")
	}
	return made.ID, err
}

// create makes a run and returns its id.
func (c *client) create(ctx context.Context, experiment string, o Options) (string, error) {
	var made struct {
		Run struct {
			Info struct {
				ID string `json:"run_id"`
			} `json:"info"`
		} `json:"run"`
	}
	err := c.post(ctx, "runs/create", struct {
		Experiment string  `json:"experiment_id"`
		Name       string  `json:"run_name,omitempty"`
		Start      int64   `json:"start_time"`
		Tags       []param `json:"tags"`
	}{experiment, o.Run, time.Now().UnixMilli(), paramsOf(o.Tags)}, &made)
	if err == nil && made.Run.Info.ID == "" {
		err = errors.New("what answers is not an MLflow server: it named no run")
	}
	return made.Run.Info.ID, err
}

// update sets the status of a run and, unless end is zero, when it ended.
func (c *client) update(ctx context.Context, id, status string, end time.Time) error {
	change := struct {
		ID     string `json:"run_id"`
		Status string `json:"status"`
		End    int64  `json:"end_time,omitempty"`
	}{ID: id, Status: status}
	if !end.IsZero() {
		change.End = end.UnixMilli()
	}
	return c.post(ctx, "runs/update", change, nil)
}

// batch is the body of runs/log-batch.
type batch struct {
	Run     string   `json:"run_id"`
	Metrics []metric `json:"metrics,omitempty"`
	Params  []param  `json:"params,omitempty"`
}

type metric struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
	Time  int64  `json:"timestamp"`
	Step  int    `json:"step"`
}

type param struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// metricsOf returns metrics as JSON has them: numbers that are not finite are strings, as in
// protobuf's JSON.
func metricsOf(list []Metric) (metrics []metric) {
	for _, m := range list {
		var value any = m.Value
		switch {
		case math.IsNaN(m.Value):
			value = "NaN"
		case math.IsInf(m.Value, 1):
			value = "Infinity"
		case math.IsInf(m.Value, -1):
			value = "-Infinity"
		}
		metrics = append(metrics, metric{cut(m.Key, maxKey), value, m.Time.UnixMilli(), m.Step})
	}
	return metrics
}

// paramsOf returns parameters or tags in the order of their names. Long values are cut.
func paramsOf(values map[string]string) (list []param) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		list = append(list, param{cut(key, maxKey), cut(values[key], maxValue)})
	}
	return list
}

// cut returns the beginning of a text, at most so many bytes.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	const end = "…"
	n := most - len(end)
	for ; n > 0 && !utf8.RuneStart(text[n]); n-- {
	}
	return text[:n] + end
}
