// markdown.js: turns the markdown that models write into elements. Text never becomes HTML: every
// piece is a text node, and links lead to http and https only.

const element = (name, ...children) => {
  const e = document.createElement(name);
  e.append(...children);
  return e;
};

const marks = [
  [/^(`+)([^]*?[^`])\1(?!`)/, (m) => element("code", m[2].trim())],
  [/^\*\*(?=\S)([^]*?\S)\*\*/, (m) => element("strong", ...inline(m[1]))],
  [/^__(?=\S)([^]*?\S)__(?!\w)/, (m) => element("strong", ...inline(m[1]))],
  [/^\*(?=[^\s*])([^*]*[^\s*])\*(?!\*)/, (m) => element("em", ...inline(m[1]))],
  [/^_(?=[^\s_])([^_]*[^\s_])_(?!\w)/, (m) => element("em", ...inline(m[1]))],
  [/^~~(?=\S)([^]*?\S)~~/, (m) => element("del", ...inline(m[1]))],
  [/^\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/, (m) => link(m[2], ...inline(m[1]))],
  [/^https?:\/\/[^\s<>)]*[^\s<>).,;:!?]/, (m) => link(m[0], m[0])],
  [/^\\([\\`*_{}[\]()#+.!|~>-])/, (m) => m[1]],
];

const link = (href, ...children) => {
  const a = element("a", ...children);
  a.href = href;
  a.rel = "noreferrer";
  a.target = "_blank";
  return a;
};

// inline returns the nodes of a text within a block.
const inline = (text) => {
  const nodes = [];
  let plain = "";
  for (let i = 0; i < text.length;) {
    const rest = text.slice(i);
    const inWord = i > 0 && /\w/.test(text[i - 1]);
    let found = null;
    if (/[`*_~[h\\]/.test(rest[0]) && !(inWord && /[_h]/.test(rest[0]))) {
      for (const [pattern, make] of marks) {
        const match = pattern.exec(rest);
        if (match) {
          found = [match[0].length, make(match)];
          break;
        }
      }
    }
    if (!found) {
      plain += rest[0];
      i++;
      continue;
    }
    nodes.push(plain, found[1]);
    plain = "";
    i += found[0];
  }
  return [...nodes, plain];
};

const bullet = /^( *)([-*+]|\d{1,9}[.)])( +)(.*)$/;
const starts = (line) => /^ {0,3}(```|~~~|#{1,6} |>)/.test(line) || bullet.test(line) ||
  /^ {0,3}([-*_])( *\1){2,} *$/.test(line);

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((c) => c.trim());

const table = (lines, i) => {
  const row = (name, line) => element("tr", ...cells(line).map((c) => element(name, ...inline(c))));
  const rows = [row("th", lines[i])];
  for (i += 2; i < lines.length && lines[i].includes("|"); i++) rows.push(row("td", lines[i]));
  return [element("table", ...rows), i];
};

const list = (lines, i) => {
  const first = bullet.exec(lines[i]);
  const ordered = /\d/.test(first[2]);
  const items = element(ordered ? "ol" : "ul");
  if (ordered) items.start = parseInt(first[2], 10);
  while (i < lines.length) {
    const match = bullet.exec(lines[i]);
    if (!match || match[1].length !== first[1].length || /\d/.test(match[2]) !== ordered) break;
    const indent = match[1].length + match[2].length + match[3].length;
    const inner = [match[4]];
    for (i++; i < lines.length; i++) {
      const spaces = /^ */.exec(lines[i])[0].length;
      if (lines[i].trim() === "") {
        if (!/^ /.test(lines[i + 1] ?? "")) break;
        inner.push("");
      } else if (spaces > match[1].length) {
        inner.push(lines[i].slice(Math.min(spaces, indent)));
      } else break;
    }
    while (lines[i]?.trim() === "" && bullet.test(lines[i + 1] ?? "")) i++;
    const blocks = parse(inner);
    const only = blocks.length > 0 && blocks[0].localName === "p" ? blocks[0].childNodes : [];
    items.append(element("li", ...only, ...blocks.slice(only.length > 0 ? 1 : 0)));
  }
  return [items, i];
};

// parse returns the blocks of some lines.
const parse = (lines) => {
  const blocks = [];
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    const fence = /^( {0,3})(```+|~~~+)/.exec(line);
    const heading = /^ {0,3}(#{1,6}) +(.*?)(?: +#+)? *$/.exec(line);
    if (line.trim() === "") {
      i++;
    } else if (fence) {
      const code = [];
      for (i++; i < lines.length && !lines[i].trim().startsWith(fence[2]); i++) code.push(lines[i]);
      i++;
      blocks.push(element("pre", element("code", code.join("\n") + "\n")));
    } else if (heading) {
      blocks.push(element("h" + heading[1].length, ...inline(heading[2])));
      i++;
    } else if (/^ {0,3}([-*_])( *\1){2,} *$/.test(line)) {
      blocks.push(element("hr"));
      i++;
    } else if (/^ {0,3}>/.test(line)) {
      const inner = [];
      for (; i < lines.length && /^ {0,3}>/.test(lines[i]); i++) {
        inner.push(lines[i].replace(/^ {0,3}> ?/, ""));
      }
      blocks.push(element("blockquote", ...parse(inner)));
    } else if (bullet.test(line)) {
      const [items, next] = list(lines, i);
      blocks.push(items);
      i = next;
    } else if (line.includes("|") && /^[\s|:-]*-[\s|:-]*$/.test(lines[i + 1] ?? "")) {
      const [made, next] = table(lines, i);
      blocks.push(made);
      i = next;
    } else {
      const text = [line.trimStart()];
      for (i++; i < lines.length && lines[i].trim() !== "" && !starts(lines[i]); i++) {
        text.push(lines[i].trimStart());
      }
      blocks.push(element("p", ...inline(text.join("\n"))));
    }
  }
  return blocks;
};

export const markdown = (text) => parse(text.replace(/\r\n?/g, "\n").split("\n"));
