-- The job of a reserved turn is stored. ARGV: 5 job. Where others passed the turn already, begin moves it.
local number = parse(redis.call('HGET', open, ARGV[5]))
if number then
  bind(ARGV[5], number, 'c')
  touch()
end
return 1
