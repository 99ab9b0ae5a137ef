module conquer

go 1.26

require github.com/wangkuiyi/gotorch v0.0.0-20201028015551-9afed2f3ad7b // indirect
