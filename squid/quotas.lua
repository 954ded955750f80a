#!lua name=squidkeeper
-- The function that counts quotas for all gateways, in Valkey. squid/FLEET.md says how to load it.
--
-- Each user has counts of its own, which no other user can change. What is used is the sum of all: a gateway that was
-- taken over can misstate its own use, and nobody else's. Each window has keys of its own, so that a clock that is set
-- back finds what was used.

local USERS = {GATEWAYS} -- of the gateways, as in valkey.conf
local SHARE = 16 -- a lease is at most this part of what is left
local DAY = 86400 -- seconds
local LARGEST = 2 ^ 53 -- numbers are exact up to here

local function used_of(keys)
    local used = 0
    for _, value in ipairs(redis.call('MGET', unpack(keys))) do
        used = used + math.max(0, tonumber(value or 0))
    end
    return math.min(used, LARGEST)
end

-- Returns the first day of a day's month. Days count from 1970-01-01; months from March on, so that a leap day is the
-- last of its year (Howard Hinnant, chrono-compatible low-level date algorithms).
local function first_of_month(day)
    local of_era = (day + 719468) % 146097
    local year = math.floor(
        (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
    local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
    local month = math.floor((5 * of_year + 2) / 153)
    return day - of_year + math.floor((153 * month + 2) / 5)
end

-- Returns when the window of a time begins and ends, in seconds from 1970 on.
-- `windows` is the length of each, or names those that begin on a Monday, or on the first of a month.
local function window_of(now, windows)
    local day = math.floor(now / DAY)
    if windows == 'week' then
        local monday = day - (day + 3) % 7
        return monday * DAY, (monday + 7) * DAY
    elseif windows == 'month' then
        local first = first_of_month(day)
        return first * DAY, first_of_month(first + 32) * DAY
    end
    return now - now % windows, now - now % windows + windows
end

-- Takes user, count, what tells its windows (`window_of`), limit, units asked for, and units that were used already.
-- Returns units given, units used, and the milliseconds until the window ends.
-- No key is an argument: Valkey would ask for the right to write each.
local function take(_, arguments)
    local user, count, windows, limit, asked, added = unpack(arguments)
    local now = redis.call('TIME')
    local began, ends = window_of(now[1], windows)
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
        redis.call('EXPIREAT', own, 2 * ends - began)
    end
    return {given, used + more, (ends - now[1]) * 1000 - math.floor(now[2] / 1000)}
end

redis.register_function('squidkeeper_take', take)
