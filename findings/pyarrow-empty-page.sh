#!/usr/bin/env bash
# pyarrow 26.0.1, writing and reading Parquet. With small pages, write_table begins a
# dictionary-encoded column of lists with a data page that holds no values. Its own reader takes
# that page for the end of the column: read_table returns fewer rows than the file's footer says,
# without an error. Readers that go on to the next page find every row, so nothing is lost in the
# file.
# Seen: seven rows in row groups of one row, data_page_size=1: read_table returns 0 rows, the footer
# says 7. With the default page size, or without dictionaries, it returns 7.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/py" pyarrow==26.0.1
cd "$folder"
PYTHONPATH=$folder/py python3 - <<'PYTHON'
import pyarrow as pa
import pyarrow.parquet as pq

table = pa.table({"words": [[f"a{i}", f"b{i}"] for i in range(7)]})
print("pyarrow", pa.__version__)
for expected, options in (
    (7, {}),
    (7, {"data_page_size": 1, "use_dictionary": False}),
    (0, {"data_page_size": 1}),
):
    pq.write_table(table, "table.parquet", row_group_size=1, **options)
    footer = pq.ParquetFile("table.parquet").metadata.num_rows
    rows = pq.read_table("table.parquet").num_rows
    print(f"{options}: the footer says {footer} rows, read_table returns {rows}")
    assert footer == 7 and rows == expected, (footer, rows)
PYTHON
echo "pyarrow 26.0.1 behaves as described"
