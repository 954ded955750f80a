-- Every request has a URL of its own, so that nothing is answered from a cache by URL. Its host is the argument.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("id", threads)
end
local count = 0
function init(arguments)
  host = arguments[1] or "bench.example"
end
function request()
  count = count + 1
  return wrk.format("GET", "http://" .. host .. "/a/" .. id .. "/" .. count, { Host = host })
end
