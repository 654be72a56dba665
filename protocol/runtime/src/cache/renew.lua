-- Keeps the leases that are still their jobs'. KEYS: places. ARGV: ms, then the job of each place. Returns 1 for each that
-- was, 0 for the others.
local kept = {}
for number, place in ipairs(KEYS) do
  -- An answer may be long, a lease is short. What is no text is no lease.
  local stands = redis.pcall('GETRANGE', place, 0, 127)
  local job = type(stands) == 'string' and string.match(stands, '^lease/([^/]*)/')
  kept[number] = 0
  if job == ARGV[number + 1] then
    redis.call('PEXPIRE', place, ARGV[1])
    kept[number] = 1
  end
end
return kept
