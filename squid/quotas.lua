#!lua name=squidkeeper
-- The function that counts quotas for all gateways, in Valkey. squid/FLEET.md says how to load it.
--
-- Each user has counts of its own, which no other user can change. What is used is the sum of all: a gateway that was
-- taken over can misstate its own use, and nobody else's. Each window has keys of its own, so that a clock that is set
-- back finds what was used.

local USERS = {GATEWAYS} -- of the gateways, as in valkey.conf
local SHARE = 16 -- a lease is at most this part of what is left
local LARGEST = 2 ^ 53 -- numbers are exact up to here

local function used_of(keys)
    local used = 0
    for _, value in ipairs(redis.call('MGET', unpack(keys))) do
        used = used + math.max(0, tonumber(value or 0))
    end
    return math.min(used, LARGEST)
end

-- Takes user, count, seconds of the window, limit, units asked for, and units that were used already.
-- Returns units given, units used, and the milliseconds until the window ends.
-- No key is an argument: Valkey would ask for the right to write each.
local function take(_, arguments)
    local user, count, seconds, limit, asked, added = unpack(arguments)
    local now = redis.call('TIME')
    local ends = now[1] - now[1] % seconds + seconds
    local keys, own = {}, nil
    for number, name in ipairs(USERS) do
        keys[number] = 'squidkeeper:quota:' .. name .. ':' .. count .. ':' .. ends
        if name == user then
            own = keys[number]
        end
    end
    if not own then
        return redis.error_reply('UNKNOWN the function counts no user ' .. user)
    end
    local used, given = used_of(keys), 0
    local left = limit - used
    if left > 0 then
        given = math.min(asked, math.max(1, math.floor(left / SHARE)))
    end
    local more = given + added
    if more > 0 then
        redis.call('INCRBY', own, string.format('%.0f', more))
        redis.call('EXPIREAT', own, ends + seconds)
    end
    return {given, used + more, (ends - now[1]) * 1000 - math.floor(now[2] / 1000)}
end

redis.register_function('squidkeeper_take', take)
