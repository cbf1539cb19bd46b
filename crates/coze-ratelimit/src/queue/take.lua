-- Gives the next job: one whose worker did not come back within the lease, else a new one.
-- KEYS: jobs, known, dead. ARGV: group, consumer, lease in ms, most tries, most dead.
-- Answers entry, id, payload, attempt; or nothing. What was given up on the way follows as ids.
local function fields(entry)
    local found = {}
    for i = 1, #entry[2], 2 do
        found[entry[2][i]] = entry[2][i + 1]
    end
    return found
end

local function claim()
    return redis.pcall('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], '0-0', 'COUNT', 1)
end

local dead = {}
local claimed = claim()
if claimed.err then
    -- The group is not there yet, or not any more: then everything in the stream is new.
    redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
    claimed = claim()
end
while claimed[2] and claimed[2][1] and #dead < 100 do
    local entry = claimed[2][1]
    local job = fields(entry)
    local deliveries = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)[1][4]
    local attempt = tonumber(job['tries']) + deliveries
    if attempt <= tonumber(ARGV[4]) then
        return { entry[1], job['id'], job['payload'], tostring(attempt), unpack(dead) }
    end
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'id', job['id'], 'payload', job['payload'], 'reason', 'job_lost')
    redis.call('XACK', KEYS[1], ARGV[1], entry[1])
    redis.call('XDEL', KEYS[1], entry[1])
    redis.call('ZREM', KEYS[2], job['id'])
    dead[#dead + 1] = job['id']
    claimed = claim()
end
local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
if read then
    local entry = read[1][2][1]
    local job = fields(entry)
    return { entry[1], job['id'], job['payload'], tostring(tonumber(job['tries']) + 1), unpack(dead) }
end
return { '', '', '', '', unpack(dead) }
