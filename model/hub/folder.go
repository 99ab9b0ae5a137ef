package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"conquer/internal/atomicfile"
)

// folder is the folder of a commit while this process holds its lock.
type folder struct {
	repo   Repo
	commit string
	dir    string
	stamps stamps
}

func (d *folder) path(f repoFile) string { return filepath.Join(d.dir, filepath.FromSlash(f.Name)) }

// part is where a file is kept while it is incomplete. Its name is the hash, so it is only
// continued with the bytes of the same file.
func (d *folder) part(f repoFile) string { return filepath.Join(d.dir, partFolder, f.sum()) }

// missing returns the files that are not there with the hub's hash. It reads the bytes of files
// that have changed since their hash was last found right.
func (d *folder) missing(files []repoFile) (list []repoFile, err error) {
	for _, f := range files {
		info, err := os.Stat(d.path(f))
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case err != nil:
			list = append(list, f)
			continue
		case !Verify && info.Size() == f.size() && d.stamps.match(f.Name, f.sum(), info):
			continue
		}
		switch err := f.verify(d.path(f)); {
		case errors.Is(err, errDamaged):
			Notice(fmt.Sprintf("%s has changed since it was fetched (%v): fetching it again",
				d.path(f), err))
			list = append(list, f)
		case err != nil:
			return nil, err
		default:
			d.stamps[f.Name] = stampOf(info, f.sum())
		}
	}
	return list, nil
}

// fetchAll downloads files, and stamps each that is complete.
func (d *folder) fetchAll(ctx context.Context, files []repoFile,
	progress func(done, total int64)) error {
	if len(files) > 0 && offline() {
		return fmt.Errorf("%s%s: %w, and the copy on this machine, %s, lacks some of its files",
			Scheme, d.repo.Name, errOffline, d.dir)
	}
	var total, done, have int64
	for _, f := range files {
		total += f.size()
		if info, err := os.Stat(d.part(f)); err == nil {
			have += info.Size()
		}
	}
	if err := checkSpace(d.dir, total-have); err != nil {
		return err
	}
	if progress == nil {
		progress = func(done, total int64) {}
	}
	for _, f := range files {
		err := d.fetch(ctx, f, func(n int64) { progress(done+n, total) })
		if err != nil {
			return fmt.Errorf("%s%s: %s: %w", Scheme, d.repo.Name, f.Name, err)
		}
		done += f.size()
		progress(done, total)
	}
	return nil
}

// checkSpace refuses to begin a download that the disk has no space for.
func checkSpace(dir string, wanted int64) error {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := float64(disk.Bavail) * float64(disk.Bsize); float64(wanted) > free {
		return fmt.Errorf("%.2f GB are to be downloaded, and the disk of %s has %.2f GB free: "+
			"free some, or set XDG_CACHE_HOME to a folder on another disk", float64(wanted)/1e9,
			dir, free/1e9)
	}
	return nil
}

// fetch downloads a file. It takes its place when its hash equals the hub's.
func (d *folder) fetch(ctx context.Context, f repoFile, progress func(done int64)) error {
	to, part := d.path(f), d.part(f)
	if f.sum() == "" {
		return errors.New("the hub cannot be asked for its hash")
	}
	if err := atomicfile.MkdirAll(filepath.Dir(to)); err != nil {
		return err
	}
	before, err := os.Stat(part)
	pieces := err == nil && before.Size() > 0 // whether several connections brought the bytes
	for {
		last := int64(-1)
		err := retry(ctx, f.Name, 5, func() (bool, error) {
			reached := int64(0)
			err := fetchTo(ctx, d.address(f), part, f.size(), authorization(), func(done int64) {
				reached = done
				progress(done)
			})
			moved := reached > last // retry as long as each connection makes progress
			pieces = pieces || err != nil && reached > 0
			last = max(last, reached)
			return moved, err
		})
		if err != nil {
			return continued(atSpace(part, err))
		}
		if err = f.verify(part); err == nil {
			break
		}
		if failed := atomicfile.Remove(part); failed != nil {
			return errors.Join(err, failed)
		}
		if !pieces || !errors.Is(err, errDamaged) {
			return fmt.Errorf("%w: what arrived was removed", err)
		}
		Notice(fmt.Sprintf("%s: the pieces of an interrupted download do not make the file (%v): "+
			"starting again", f.Name, err))
		pieces = false
	}
	if err := atomicfile.Rename(part, to); err != nil {
		return err
	}
	for _, name := range []string{to, part} {
		if err := atomicfile.SyncFolder(filepath.Dir(name)); err != nil {
			return err
		}
	}
	info, err := os.Stat(to)
	if err == nil {
		d.stamps[f.Name] = stampOf(info, f.sum())
	}
	return err
}

// address is where the hub serves a file.
func (d *folder) address(f repoFile) string {
	prefix := ""
	if d.repo.Kind != "models" {
		prefix = d.repo.Kind + "/"
	}
	var escaped []string
	for part := range strings.SplitSeq(f.Name, "/") {
		escaped = append(escaped, url.PathEscape(part))
	}
	return fmt.Sprintf("%s/%s%s/resolve/%s/%s", endpoint(), prefix, d.repo.Name, d.commit,
		strings.Join(escaped, "/"))
}

// atSpace explains the error of a full disk.
func atSpace(path string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return atomicfile.Explain(path, err)
	}
	return err
}

// unwritable reports whether an error says that a folder can only be read.
func unwritable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}
