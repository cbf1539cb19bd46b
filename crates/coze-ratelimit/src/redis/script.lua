-- A batch of decisions, one after another, in one call. All keys lie in one slot of a cluster.
--
-- ARGV: the node; and an array of numbers as MessagePack, which reads faster than an argument for each: for each key its
-- header, then the decisions.
--   rate         1, rate, burst, window, units of a request, number of settlements, (slot, spent, returned) of each
--   concurrency  2, limit, number of the call, how many this node has
--   decision     how many alike, number of levels, (key, cost, rest, requests to lease) of each: the cost fits if the rest fits
--                besides, or nothing is used; the keys differ, and no cost is above what ever fits
-- Reply: the slot in which leases of this call end, the microseconds until then; then for each decision
--   how many were admitted (the first ones), microseconds until another one fits, microseconds until all fit, the level that
--   refused (0 for none), and what was leased of each level.
--
-- Rates are those of account.rs, function by function. Numbers are integers below 2^53, so that doubles hold them exactly.
local SLICE, PAST, AHEAD = 100000, 10, 5
-- How long a node that says nothing keeps its places, in microseconds; and when to try again where nobody knows.
local KEEP, TRY = 10000000, 1000000
-- Where the current slice is in an account: time, level, then the slices.
local CURRENT = 2 + PAST

local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]

-- Locals are found faster than globals.
local max, min, ceil = math.max, math.min, math.ceil

local node, numbers, read = ARGV[1], cmsgpack.unpack(ARGV[2]), 0
local function number()
    read = read + 1
    return numbers[read]
end

local function div(a, b)
    return (a - a % b) / b
end

local function drain(key, till)
    local a = key.account
    a[2] = max(0, a[2] - (till - a[1]) * key.rate)
    a[1] = till
end

local function advance(key, now)
    local a = key.account
    now = max(now, a[1])
    local base = div(a[1], SLICE)
    local passed = min(PAST + AHEAD, div(now, SLICE) - base)
    for slot = 1, min(passed, AHEAD) do
        local ended = a[CURRENT + slot]
        if ended > 0 then
            drain(key, (base + slot) * SLICE)
            a[2] = a[2] + ended * key.request
        end
    end
    drain(key, now)
    if passed > 0 then
        for i = 3, CURRENT + AHEAD do
            a[i] = a[i + passed] or 0
        end
    end
end

local function take(key, cost)
    local a = key.account
    a[2] = a[2] + cost * key.request
    a[CURRENT] = a[CURRENT] + cost
end

local function settle(key, slot, spent, returned)
    local a = key.account
    local ahead = slot - div(a[1], SLICE)
    if ahead < 1 or ahead > AHEAD then
        return
    end
    local i = CURRENT + ahead
    spent = min(spent, a[i])
    a[i] = a[i] - spent
    a[i] = a[i] - min(returned, a[i])
    take(key, spent)
end

local function sum(a, from)
    local total = 0
    for i = from, CURRENT + AHEAD do
        total = total + a[i]
    end
    return total
end

local function wait(key, cost)
    if key.limit then
        return key.others + key.have <= max(0, key.limit - cost) and 0 or TRY
    end
    local a = key.account
    local base = div(a[1], SLICE)
    local room = max(0, key.window - cost)
    local used, slices = sum(a, 3), 0
    while used > room and slices < PAST + AHEAD do
        used = used - a[3 + slices]
        slices = slices + 1
    end
    local window = slices == 0 and 0 or (base + slices) * SLICE - a[1]
    room = max(0, key.burst - cost) * key.request
    local at, level, leased = a[1], a[2], sum(a, CURRENT + 1) * key.request
    for slot = 1, AHEAD do
        local ended = a[CURRENT + slot] * key.request
        local excess = max(0, level + leased - room)
        local till = (base + slot) * SLICE
        if ended > 0 and (excess > level or excess > (till - at) * key.rate) then
            level = max(0, level - (till - at) * key.rate) + ended
            at = till
            leased = leased - ended
        end
    end
    return max(window, at - a[1] + ceil(max(0, level + leased - room) / key.rate))
end

local function room(key)
    if key.limit then
        return max(0, key.limit - key.others - key.have)
    end
    local a = key.account
    local bucket = div(max(0, key.burst * key.request - a[2]), key.request)
    return min(max(0, bucket - sum(a, CURRENT + 1)), max(0, key.window - sum(a, 3)))
end

-- How many of this cost fit one after another.
local function count(level)
    local fit = div(max(0, room(level.key) - level.rest), level.cost)
    return fit == 0 and wait(level.key, level.cost + level.rest) == 0 and 1 or fit
end

local keys = {}
for i, name in ipairs(KEYS) do
    local key
    if number() == 1 then
        key = {rate = number(), burst = number(), window = number(), request = number(), account = false, changed = false}
        local stored = redis.call('GET', name)
        key.account = stored and cmsgpack.unpack(stored) or {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
        advance(key, clock)
        for _ = 1, number() do
            settle(key, number(), number(), number())
            key.changed = true
        end
    else
        key = {limit = number(), call = number(), have = number(), others = 0}
        local stored = redis.call('HGETALL', name)
        for field = 1, #stored, 2 do
            local have, till, call = cmsgpack.unpack(stored[field + 1])
            if stored[field] == node then
                -- A call that was overtaken by a later one of the same node.
                key.late = call > key.call
            elseif till > clock then
                key.others = key.others + have
            else
                redis.call('HDEL', name, stored[field])
            end
        end
        key.others = key.late and key.limit or key.others
        key.changed = not key.late
    end
    keys[i] = key
end

local slot = div(clock, SLICE) + AHEAD
local reply = {slot, slot * SLICE - clock}
while read < #numbers do
    local alike, levels = number(), {}
    for i = 1, number() do
        levels[i] = {key = keys[number()], cost = number(), rest = number(), ahead = number()}
    end
    -- As many as fit of each level are admitted, at once: that is the same as one after another.
    local admitted, longest, full, refused = alike, 0, 0, 0
    for _, level in ipairs(levels) do
        if level.cost > 0 then
            admitted = min(admitted, count(level))
        end
    end
    for _, level in ipairs(levels) do
        local key, cost = level.key, admitted * level.cost
        if key.limit then
            key.have = key.have + cost
        else
            take(key, cost)
            key.changed = key.changed or cost > 0
        end
    end
    if admitted < alike then
        longest = -1
        for i, level in ipairs(levels) do
            local this = wait(level.key, level.cost + level.rest)
            if this > longest then
                longest, refused = this, i
            end
        end
        local key = levels[refused].key
        full = key.limit and TRY or wait(key, min(key.window, key.burst))
    end
    local last = #reply
    reply[last + 1], reply[last + 2], reply[last + 3], reply[last + 4] = admitted, longest, full, refused
    for i, level in ipairs(levels) do
        local key, granted = level.key, 0
        if refused == 0 and level.ahead > 0 then
            granted = min(room(key), level.ahead)
            key.account[CURRENT + AHEAD] = key.account[CURRENT + AHEAD] + granted
            key.changed = key.changed or granted > 0
        end
        reply[last + 4 + i] = granted
    end
end

for i, name in ipairs(KEYS) do
    local key = keys[i]
    if not key.changed then
        -- A refusal leaves no trace.
    elseif key.limit then
        if key.have > 0 then
            redis.call('HSET', name, node, cmsgpack.pack(key.have, clock + KEEP, key.call))
            redis.call('PEXPIRE', name, KEEP / 1000)
        else
            redis.call('HDEL', name, node)
        end
    else
        local a = key.account
        local lifetime = ceil((a[2] + sum(a, CURRENT + 1) * key.request) / key.rate) + (PAST + AHEAD) * SLICE
        redis.call('SET', name, cmsgpack.pack(a), 'PX', ceil(lifetime / 1000))
    end
end
return reply
