-- Every request has a URL of its own, so that nothing is answered from a cache by URL.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("id", threads)
end
local count = 0
function request()
  count = count + 1
  return wrk.format("GET", "http://bench.example/a/" .. id .. "/" .. count, { Host = "bench.example" })
end
