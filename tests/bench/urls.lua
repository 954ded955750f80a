-- Every request has a URL of its own, so that nothing is answered from a cache by URL. Its host is the first argument. The
-- second is the kind of a body of 10 KB: "chat" (long texts), "keys" (many members); without it the requests have none.
local threads = 0
function setup(thread)
  threads = threads + 1
  thread:set("id", threads)
end
local count = 0
function init(arguments)
  host = arguments[1] or "bench.example"
  local kind, items = arguments[2], {}
  for number = 1, kind == "chat" and 20 or 700 do
    items[number] = kind == "chat" and '{"role":"user","content":"' .. string.rep("How does this work? ", 24) .. '"}'
      or '"k' .. number .. '":' .. number
  end
  local all = table.concat(items, ",")
  body = kind and '{"model":"small","stream":true,"messages":' .. (kind == "chat" and "[" .. all .. "]" or "{" .. all .. "}") .. "}"
end
function request()
  count = count + 1
  local url = "http://" .. host .. "/a/" .. id .. "/" .. count
  if body then
    return wrk.format("POST", url, { Host = host, ["Content-Type"] = "application/json" }, body)
  end
  return wrk.format("GET", url, { Host = host })
end
