package serve

import (
	"embed"
	"net/http"
)

// pageFiles are a page to talk to the model. It needs no build step and nothing from elsewhere.
//
//go:embed page
var pageFiles embed.FS

// page serves the files of the page.
func page(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; "+
		"img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "+
		"frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	if r.URL.Path == "/" {
		http.ServeFileFS(w, r, pageFiles, "page/index.html")
		return
	}
	http.ServeFileFS(w, r, pageFiles, r.URL.Path[1:])
}
