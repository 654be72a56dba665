-- Stands before every session script. A session is four keys under one hash tag:
--   meta     hash  tail: greatest number given; floor: every number up to it was settled long ago;
--                  forgotten: turns up to it leave no trace; bytes: size of the conversation
--   open     hash  job -> number:state:ms, for turns that are not settled; state r (reserved) or c (confirmed).
--                  The field ?<number> holds the place of a turn whose job is not known.
--   settled  zset  job by number, the newest only
--   turns    zset  the conversation by number
-- ARGV of all: 1 time to live in ms, 2 ms for which a reservation holds, 3 most open turns, 4 ms after which any open turn is void
local meta, open, settled, turns = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
for key, want in pairs({[meta] = 'hash', [open] = 'hash', [settled] = 'zset', [turns] = 'zset'}) do
  local is = redis.call('TYPE', key).ok
  if is ~= 'none' and is ~= want then
    return redis.error_reply('CORRUPT ' .. key .. ' is a ' .. is)
  end
end

local ttl, hold, open_max, void_after = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Lua writes great numbers as 1e+12; Redis must not see that.
local function int(number)
  return string.format('%.0f', number)
end

local function field(name)
  return tonumber(redis.call('HGET', meta, name) or '0') or 0
end

local function set(name, number)
  redis.call('HSET', meta, name, int(number))
end

local function parse(entry)
  local number, state, at = string.match(entry or '', '^(%d+):([rc]):(%d+)$')
  return tonumber(number), state, tonumber(at)
end

local function bind(job, number, state)
  redis.call('HSET', open, job, int(number) .. ':' .. state .. ':' .. int(now))
end

-- Void turns keep nobody waiting: never confirmed in time, or older than any deadline.
local function void(number, state, at)
  return not number or (state == 'r' and now - at > hold) or now - at > void_after
end

local function drop_void()
  local entries = redis.call('HGETALL', open)
  for i = 1, #entries, 2 do
    if void(parse(entries[i + 1])) then
      redis.call('HDEL', open, entries[i])
    end
  end
end

local function touch()
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, ttl)
  end
end
